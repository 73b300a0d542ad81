"""io.systemd.UserDatabase."""
