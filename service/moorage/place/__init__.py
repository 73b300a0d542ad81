"""What systemd-machined shows to the rest of the system, shown in its place."""
