"""moorage-exporter: what io.systemd.Metrics of moored says, for Prometheus."""
