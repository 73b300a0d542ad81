"""The exporter, a real Prometheus and a real systemd-report, where there are all controllers and processes are killed
for lack of memory."""

from pathlib import Path

from sandboxes import start, stop

PACKAGES = "prometheus,python3-prometheus-client,systemd-report"
MODULE = Path(__file__).parent / "inside" / "exporter" / "test_exporter.py"


def test_exporter() -> None:
    sandbox = start("forky", ["--kind=uml", "--packages", PACKAGES, "--mask", "prometheus.service"])
    try:
        sandbox.pytest(MODULE)
    finally:
        stop(sandbox)
