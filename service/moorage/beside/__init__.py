"""Beside systemd-machined: machines of each are known to the other."""
