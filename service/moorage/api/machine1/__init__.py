"""``org.freedesktop.machine1``, the name of systemd-machined on the message bus: a door to io.systemd.Machine."""
