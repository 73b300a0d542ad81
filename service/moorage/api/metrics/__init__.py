"""io.systemd.Metrics: what systemd-report(1), and the exporter for Prometheus, collect."""
