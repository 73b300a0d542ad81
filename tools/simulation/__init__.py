"""The core of moored on a kernel and a service manager in memory, at whatever moment something goes wrong."""
