"""How long a client waits."""

CALL_SECONDS = 45.0
"""How long a reply may take (VARLINK_DEFAULT_TIMEOUT_USEC of sd-varlink.c)."""

CONNECT_SECONDS = 45.0
"""How long connecting may take. With socket activation it takes no time, unless the backlog is full."""

CONNECT_RETRY_SECONDS = 0.01
"""Pause before trying again when the backlog is full: the kernel does not report when there is room (connect(2))."""
