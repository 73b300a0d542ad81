"""Random calls of several users at once, and what may come of them: the boundary of docs/security.md."""
