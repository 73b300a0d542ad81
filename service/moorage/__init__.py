"""Machine registration and scope allocation over varlink, on top of the systemd service manager."""

__version__ = "0.1.0"
