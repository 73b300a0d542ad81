"""The Debian packages: installed, upgraded under machines that live, removed and purged, without a checkout."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from debian_packages import INSTALL, WITHOUT_CHECKOUT, script
from sandboxes import Sandbox

pytestmark = pytest.mark.xdist_group("packages")  # or each worker builds them

MACHINES = 20

# Machines with a helper and a lease each, held by moorctl run.
START = f"""
for number in $(seq {MACHINES}); do
    systemd-run --quiet --unit="launcher$number" --property=Type=exec \\
        moorctl run --name "m$number" --helper 'fs=/usr/bin/sleep infinity' -- sleep infinity
done
for try in $(seq 400); do [ "$(moorctl list --no-legend | wc -l)" = {MACHINES} ] && exit; sleep 0.05; done
moorctl list; exit 1
"""

LIVING = """
moorctl list --no-legend | awk '{print $1}' | sort
for number in $(seq %d); do
    systemctl show --value --property=InvocationID "machine-m$number.scope" "machine-m$number-fs.service"
    systemctl is-active "launcher$number"
done
"""

# Every launcher has connected again, as it does to take its lease.
LEASES_HELD = f"""
for try in $(seq 400); do
    [ "$(ss --no-header --unix state connected | grep -c io.moorage.Machine)" -ge {MACHINES} ] && exit
    sleep 0.05
done
ss --unix; exit 1
"""

# A package of a later version, as an archive would have it.
LATER = """
mkdir -p /later
for deb in /packages/*.deb; do
    dpkg-deb --raw-extract "$deb" /later/tree
    sed -i 's/0[.]1[.]0/0.1.1/' /later/tree/DEBIAN/control
    dpkg-deb --build /later/tree /later >/dev/null
    rm -r /later/tree
done
"""


def test_packages_from_installation_to_purge(packages: Path, boot: Callable[..., Sandbox]) -> None:
    sandbox = boot("--bind-ro", f"{packages}:/packages")
    script(sandbox, WITHOUT_CHECKOUT)

    # Installed, the socket listens, and everything is where distributions have it.
    script(sandbox, INSTALL)
    assert script(sandbox, "systemctl is-enabled moored.socket; systemctl is-active moored.socket") == (
        "enabled\nactive\n"
    )
    assert "disabled" in script(sandbox, "systemctl is-enabled moored-machined.socket || true")
    files = script(sandbox, "dpkg --listfiles moored moorctl python3-moorage").splitlines()
    for path in (
        "/usr/share/man/man8/moored.8.gz",
        "/usr/share/man/man1/moorctl.1.gz",
        "/usr/share/bash-completion/completions/moorctl",
        "/usr/share/polkit-1/actions/io.moorage.policy",
        "/usr/share/dbus-1/system.d/io.moorage.conf",
    ):
        assert path in files
    # What else it needs is not in the sandbox: prometheus_client.
    exporter = script(sandbox, "dpkg-deb --contents /packages/moorage-exporter_*.deb")
    for path in (
        "./usr/bin/moorage-exporter",
        "./usr/lib/systemd/system/moorage-exporter.socket",
        "./usr/lib/systemd/system/moorage-exporter.service",
        "./usr/share/man/man8/moorage-exporter.8.gz",
        "./usr/share/doc/moorage-exporter/examples/prometheus/moorage.rules.yml",
        "./usr/share/doc/moorage-exporter/examples/grafana/moorage.json",
    ):
        assert f" {path}" in exporter
    assert "moorage-exporter" not in "".join(files)
    assert "varlink" in script(sandbox, "varlinkctl info /run/moorage/io.moorage.Machine")

    # An upgrade restarts the service, and harms no machine: the same scopes, helpers and launchers afterwards.
    script(sandbox, START)
    before = script(sandbox, LIVING % MACHINES)
    served = script(sandbox, "systemctl show --value --property=MainPID moored.service")
    script(sandbox, LATER + INSTALL.replace("/packages", "/later"))
    assert script(sandbox, "systemctl show --value --property=MainPID moored.service") != served
    script(sandbox, LEASES_HELD)
    assert script(sandbox, LIVING % MACHINES) == before
    assert len(re.findall(r"^active$", before, re.MULTILINE)) == MACHINES

    # Removed, the machines that do not hang on a launcher's lease live on; purged, nothing is left but them.
    left = script(
        sandbox,
        "systemd-run --quiet --unit=kept --property=Type=exec sleep infinity\n"
        "pid=$(systemctl show --value --property=MainPID kept)\n"
        "moorctl register kept --leader $pid >/dev/null\n"
        "dpkg --purge moored moorctl python3-moorage >/dev/null\n"
        "kill -0 $pid; systemctl is-active machine-kept.scope\n"
        "find / -xdev -name '*moor*' ! -path '/packages*' ! -path '/later*' ! -path '/proc/*' "
        "! -path '/sys/*' ! -path '/var/lib/dpkg/*' ! -path '/var/log/*' ! -path '/run/moorage*' "
        "! -path '/var/cache/*' ! -path '/moorage'\n",
    )
    assert left == "active\n", left
