"""The service manager (PID 1, or the manager of a user) as the rest of the daemon sees it."""
