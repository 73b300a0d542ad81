"""What the kernel reports of processes and control groups; nothing here waits for anybody."""
