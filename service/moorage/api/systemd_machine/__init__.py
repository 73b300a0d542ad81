"""`io.systemd.Machine`, as systemd-machined serves it."""
