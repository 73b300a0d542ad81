"""What moorctl doctor finds on hosts of all kinds, and what it advises."""

import socket
from pathlib import Path

import pytest

from moorage.cli import doctor
from moorage.cli.address import Address
from moorage.cli.doctor import Finding, State


def host(root: Path, *, controllers: str = "cpu cpuset io memory pids") -> Path:
    """Lay out what a host with everything has."""
    for path in (
        "run/systemd/system",
        "run/dbus/system_bus_socket",
        "sys/fs/bpf",
        "usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service",
        "usr/share/polkit-1/actions/io.moorage.policy",
        "usr/share/dbus-1/system.d/io.moorage.conf",
    ):
        (root / path).mkdir(parents=True)
    (root / "sys/fs/cgroup").mkdir()
    (root / "sys/fs/cgroup/cgroup.controllers").write_text(f"{controllers}\n")
    (root / "sys/kernel/btf").mkdir(parents=True)
    (root / "sys/kernel/btf/vmlinux").touch()
    return root


def found(root: Path, subject: str, *, address: Address | None = None) -> Finding:
    """Examine a host, and return one of the findings."""
    address = address or Address(str(root / "socket"), "systemctl")
    return next(each for each in doctor.examine(address, root=root) if each.subject == subject)


def test_a_host_with_everything(tmp_path: Path) -> None:
    host(tmp_path)
    for subject in ("control groups", "controllers", "BPF", "system bus", "polkit", "systemd-machined"):
        assert found(tmp_path, subject).state is State.good, subject


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("6.8.12-amd64", State.bad),
        ("5.15.0", State.bad),
        ("6.9.0", State.limited),
        ("6.15.1", State.limited),
        ("6.16.3+deb14-amd64", State.good),
        ("7.0.0", State.good),
        ("unknown", State.unknown),
    ],
)
def test_the_kernel(release: str, state: State) -> None:
    assert doctor._kernel(release).state is state


def test_no_systemd(tmp_path: Path) -> None:
    finding = found(tmp_path, "service manager")
    assert (finding.state, finding.words) == (State.bad, "systemd is not the init system of this host")


def test_controllers_of_version_1(tmp_path: Path) -> None:
    finding = found(host(tmp_path, controllers="cpuset pids"), "controllers")
    assert finding == Finding(
        "controllers",
        State.limited,
        "missing: cpu io memory; their limits have no effect",
        "They are of version 1 or switched off: see cgroup_disable= and cgroup_no_v1= of the kernel",
    )


def test_controllers_that_a_container_was_not_given(tmp_path: Path) -> None:
    """What the command line of its kernel says is the host's business."""
    (host(tmp_path, controllers="") / "run/systemd/container").write_text("systemd-nspawn")
    finding = found(tmp_path, "controllers")
    assert finding.state is State.limited
    assert finding.remedy is not None
    assert finding.remedy.startswith("In a container: its host has to have them")


def test_a_users_manager_without_controllers(tmp_path: Path) -> None:
    finding = found(host(tmp_path), "controllers", address=Address("/nowhere", "systemctl --user"))
    assert finding.state is State.unknown  # there is no group of this user's manager


@pytest.mark.parametrize(
    ("missing", "subject", "remedy"),
    [
        ("usr/share/polkit-1/actions/io.moorage.policy", "polkit", "Copy units/polkit/io.moorage.policy"),
        ("usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service", "polkit", "Install polkitd"),
        ("run/dbus/system_bus_socket", "system bus", "Install dbus"),
        ("usr/share/dbus-1/system.d/io.moorage.conf", "system bus", "Copy units/dbus/io.moorage.conf"),
        ("sys/fs/bpf", "BPF", "DeviceAllow="),
    ],
)
def test_what_is_missing_is_limited_and_has_a_remedy(
    tmp_path: Path, missing: str, subject: str, remedy: str
) -> None:
    (host(tmp_path) / missing).rmdir()
    finding = found(tmp_path, subject)
    assert finding.state is State.limited
    assert finding.remedy is not None
    assert finding.remedy.startswith(remedy)


def test_nobody_listens(tmp_path: Path) -> None:
    address = Address(str(tmp_path / "socket"), "systemctl --user")
    finding = doctor._socket(address)
    assert finding == Finding(
        "socket",
        State.bad,
        f"{address.path}: nobody listens",
        "systemctl --user enable --now moored.socket",
    )
    assert doctor.failed([finding])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address.path)
        assert doctor._socket(address).words.endswith("nobody listens")
        listener.listen()
        assert doctor._socket(address) == Finding("socket", State.good, address.path)
