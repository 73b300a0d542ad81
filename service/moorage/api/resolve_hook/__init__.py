"""io.systemd.Resolve.Hook."""
