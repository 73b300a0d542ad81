"""The service manager over D-Bus: `session` holds the connection, `translate` the words, `calls` is the manager."""
