"""D-Bus: values to bytes and back, and a connection that loses no signal."""
