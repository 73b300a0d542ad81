"""`io.systemd.MachineInstance`: each machine at a socket of its own, as systemd-vmspawn serves those of its VMs."""
