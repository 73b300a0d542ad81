"""moorctl against the real moored, started by the first call."""

import os
import subprocess
from typing import Literal

import pytest
from cli_battery import RUN_SECONDS, Battery, Leaders, Moorctl, a_name, refused
from moored import MOORCTL, SOCKET, for_us, run

from moorage.cli.address import Address
from moorage.cli.properties.assignments import converter_of
from moorage.cli.service import signatures

pytestmark = pytest.mark.system_instance(
    "what moorctl prints does not depend on an instance; test_run and others call that of a user", runs=True
)

BOB = 1001
"""An ordinary user of every sandbox."""


@pytest.fixture(scope="module", autouse=True)
def _activated() -> None:
    run("systemctl", "start", "moored.socket")


# Types the password when it is asked for, as a person does at a terminal.
ADMINISTRATOR = """
import os, pty, sys, termios, time
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
told = b""
while True:
    try:
        read = os.read(fd, 4096)
    except OSError:
        break
    told += read
    if told.endswith(b"assword: "):
        # What is typed before the agent has turned the echo off, it throws away (TCSAFLUSH).
        while termios.tcgetattr(fd)[3] & termios.ECHO:
            time.sleep(0.01)
        os.write(fd, b"secret\\n")
print(told.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.usefixtures("moored")
class TestOverTheService(Battery):
    @pytest.fixture
    def moorctl(self) -> Moorctl:
        return Moorctl(MOORCTL)

    def test_a_slice_of_its_own(self, moorctl: Moorctl, leaders: Leaders) -> None:
        leader, name = leaders(), a_name()
        register = ("register", name, "--leader", str(leader.pid), "--slice", "vms.slice")
        moorctl.output(*register, "--slice-property", "TasksMax=77", "--slice-property", "MemoryMax=1G")
        shown = run("systemctl", "show", f"vms-{name}.slice", "--property=TasksMax,MemoryMax").splitlines()
        assert set(shown) == {"TasksMax=77", "MemoryMax=1073741824"}
        refused(moorctl("register", a_name(), "--leader", "1", "--slice-property", "User=root"), 2, "slice")

    def test_the_scope_is_real(self, moorctl: Moorctl, leaders: Leaders) -> None:
        leader = leaders()
        unit = moorctl.output(
            *("register", a_name(), "--leader", str(leader.pid)),
            *("--slice", "machine-moorctl.slice", "--description", "Of the battery"),
        ).strip()
        shown = run(
            "systemctl", "show", unit, "--property=Description,Slice,ActiveState,ControlGroup"
        ).splitlines()
        assert {"Description=Of the battery", "Slice=machine-moorctl.slice", "ActiveState=active"} < set(
            shown
        )
        with open(f"/proc/{leader.pid}/cgroup") as group:
            [unified] = [line.strip() for line in group if line.startswith("0::")]
        assert f"ControlGroup={unified.removeprefix('0::')}" in shown

    def test_every_way_of_writing_a_property_is_taken(self, moorctl: Moorctl, leaders: Leaders) -> None:
        properties = [
            "MemoryMax=1G", "MemoryHigh=50%", "MemoryLow=", "MemorySwapMax=infinity", "TasksMax=50%",
            "CPUQuota=50%", "CPUQuotaPeriodSec=10ms", "CPUWeight=idle", "StartupCPUWeight=200", "IOWeight=300",
            "AllowedCPUs=0", "AllowedMemoryNodes=0", "TimeoutStopSec=1min 30s", "RuntimeMaxSec=infinity",
            "RuntimeRandomizedExtraSec=5", "Delegate=cpu memory", "DelegateSubgroup=init", "KillSignal=SIGINT",
            "FinalKillSignal=9", "SendSIGHUP=yes", "SendSIGKILL=no", "KillMode=mixed", "OOMPolicy=kill",
            "After=a.service b.service", "After=c.service", "DeviceAllow=/dev/null rw", "DeviceAllow=char-pts",
            "DevicePolicy=closed", "IOReadBandwidthMax=/dev/null 10M", "IOWriteIOPSMax=/dev/null infinity",
            "IODeviceWeight=/dev/null 200", "IODeviceLatencyTargetSec=/dev/null 25ms",
            "IPAddressAllow=192.0.2.0/24 2001:db8::/32", "IPAddressDeny=any", "ManagedOOMMemoryPressure=kill",
            "ManagedOOMMemoryPressureLimit=60%", "ManagedOOMMemoryPressureDurationSec=30s", "IPAccounting=no",
            "MemoryPressureWatch=off", "DisableControllers=",
            "Documentation=man:systemd.scope(5)", "StopWhenUnneeded=no",
            "CPUQuotaPerSecUSec=250000", "SourcePath=/etc/passwd",
        ]  # fmt: skip
        options = [word for one in properties for word in ("-p", one)]
        name = a_name()
        unit = moorctl.output("register", name, "--leader", str(leaders().pid), *options).strip()
        expected = {
            "After": "a.service b.service c.service", "CPUQuotaPerSecUSec": "250ms", "CPUWeight": "idle",
            "CPUQuotaPeriodUSec": "10ms", "TimeoutStopUSec": "1min 30s", "RuntimeMaxUSec": "infinity",
            "AllowedCPUs": "0", "DelegateControllers": "cpu memory", "KillSignal": "2", "FinalKillSignal": "9",
            "SendSIGKILL": "no", "OOMPolicy": "kill", "DevicePolicy": "closed", "IODeviceWeight": "/dev/null 200",
            "IOReadBandwidthMax": "/dev/null 10000000", "IODeviceLatencyTargetUSec": "/dev/null 25ms",
            "IPAddressAllow": "192.0.2.0/24 2001:db8::/32", "ManagedOOMMemoryPressureDurationUSec": "30s",
            "MemoryLow": "0", "MemorySwapMax": "infinity", "SourcePath": "/etc/passwd",
        }  # fmt: skip
        lines = run("systemctl", "show", unit, f"--property={','.join(expected)}").splitlines()
        shown = {name: value for name, _, value in (line.partition("=") for line in lines)}
        shown["After"] = " ".join(sorted(set(shown["After"].split()) & set(expected["After"].split())))
        shown["IPAddressAllow"] = " ".join(sorted(shown["IPAddressAllow"].split()))
        assert shown == expected
        assert "CPUQuota: 25%" in moorctl.output("status", name)

    def test_a_name_that_a_foreign_unit_has(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name = a_name()
        with subprocess.Popen(
            for_us(
                "systemd-run",
                "--quiet",
                "--scope",
                f"--unit=machine-{name}",
                "sh",
                "-c",
                "echo; read nothing",
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as foreign:
            assert foreign.stdout is not None
            assert foreign.stdout.readline() == b"\n"
            done = moorctl("register", name, "--leader", str(leaders().pid))
            foreign.communicate(b"\n", timeout=RUN_SECONDS)
        hint = " ".join(for_us("systemctl", "status", f"machine-{name}.scope"))
        refused(done, 1, f"The unit name machine-{name}.scope is taken", hint)

    @pytest.mark.system_instance("only root may run a command as somebody else")
    def test_another_user_is_not_let_in(self, leaders: Leaders) -> None:
        done = subprocess.run(
            [Moorctl().program, "register", a_name(), "--leader", str(leaders().pid)],
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
            user=BOB,
            env={**os.environ, "HOME": "/"},
        )
        refused(done, 4, "moorctl --user")

    def test_no_allocate(self, moorctl: Moorctl) -> None:
        name = a_name()
        service = f"{name}.service"
        run("systemd-run", "--quiet", f"--unit={service}", "sleep", "infinity")
        pid = run("systemctl", "show", "--value", "--property=MainPID", service).strip()
        assert moorctl.output("register", name, "--leader", pid, "--no-allocate") == f"{service}\n"
        run("systemctl", "stop", service)

    @pytest.mark.system_instance("the manager of a user asks nobody")
    def test_an_administrator_is_asked_at_the_terminal(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name, leader = a_name(), leaders()
        moorctl.output("register", name, "--leader", str(leader.pid))
        subprocess.run(["chpasswd"], input=b"root:secret\n", check=True, timeout=RUN_SECONDS)
        program = [moorctl.program, *moorctl.options]
        # A login session, as polkit asks agents of sessions only.
        session = [
            "systemd-run",
            "--quiet",
            "--pipe",
            "--wait",
            "--property=PAMName=login",
            "--property=User=alice",
        ]
        try:
            silent = subprocess.run(
                [*session, *program, "--no-ask-password", "stop", name],
                capture_output=True, text=True, check=False, timeout=RUN_SECONDS,
            )  # fmt: skip
            refused(silent, 4, "needs an administrator to authenticate")
            done = subprocess.run(
                [*session, "python3", "-c", ADMINISTRATOR, *program, "stop", name],
                capture_output=True, text=True, check=False, timeout=RUN_SECONDS,
            )  # fmt: skip
            assert done.returncode == 0, done
            assert (
                f"Authentication is required to manage machine {name} of another user (stop)." in done.stdout
            )
            hers = [*program, "run", "--name", a_name(), "--", "echo", "it runs"]
            done = subprocess.run(
                [*session, "python3", "-c", ADMINISTRATOR, *hers],
                capture_output=True, text=True, check=False, timeout=RUN_SECONDS,
            )  # fmt: skip
            assert done.returncode == 0, done
            assert "it runs" in done.stdout.partition("scope of its own.")[2]
        finally:
            run("usermod", "--password", "*", "root")
        refused(moorctl("stop", name), 3, name)

    def test_whoever_registers_and_leaves_supervises_nothing(
        self, moorctl: Moorctl, leaders: Leaders
    ) -> None:
        name, leader = a_name(), leaders()
        moorctl.output("register", name, "--leader", str(leader.pid))
        (shown,) = moorctl.objects("status", name)
        assert "supervisor" not in shown["machine"]  # type: ignore[operator]
        moorctl.output("stop", name)


UNWRITTEN = {
    # without a form of their own in unit files, or with one that depends on files
    "ExtensionImages", "MountImages", "NFTSet", "RootHash", "RootHashSignature", "RootImageOptions", "SocketBindAllow",
    "SocketBindDeny",
    # not written under this name
    "Asserts", "Conditions", "EnvironmentFiles", "ImportCredentialEx", "ProtectHostnameEx",
    # not to be set
    "ActivationDetails", "CacheDirectoryQuotaUsage", "EffectiveCPUs", "EffectiveMemoryNodes", "InvocationID", "Job",
    "LoadError", "LogsDirectoryQuotaUsage", "PIDs", "StateDirectoryQuotaUsage",
}  # fmt: skip
"""Properties whose values have to be JSON."""


@pytest.mark.parametrize("unit_type", ["scope", "service"])
def test_every_property_is_converted_by_its_type_or_by_a_row_of_its_own(
    unit_type: Literal["scope", "service"],
) -> None:
    known = signatures(Address(SOCKET, " ".join(for_us("systemctl"))), unit_type)
    assert len(known) > 200
    converted = {name: converter_of(name, known) for name in known}
    unwritten = {name for name, converter in converted.items() if converter is None}
    ends = ("Ex", "Symlink")  # of names that only the bus has
    assert {name for name in unwritten if not name.endswith(ends)} <= UNWRITTEN


NOT_PROPERTIES = {
    "Sockets",  # adds dependencies
    # names of old that only the parser of unit files still knows
    "BindTo", "InaccessibleDirectories", "OnFailureIsolate", "PermissionsStartOnly", "PropagateReloadFrom",
    "PropagateReloadTo", "ReadOnlyDirectories", "ReadWriteDirectories", "RequiresOverridable", "RequisiteOverridable",
    "StartLimitInterval",
}  # fmt: skip


@pytest.mark.parametrize("unit_type", ["scope", "service"])
def test_every_setting_of_a_unit_file_is_a_property(
    unit_type: Literal["scope", "service"],
) -> None:
    """The manager tells which settings its parser of unit files knows."""
    known = signatures(Address(SOCKET, " ".join(for_us("systemctl"))), unit_type)
    done = subprocess.run(
        ["/usr/lib/systemd/systemd", "--dump-configuration-items"],
        capture_output=True, text=True, check=True, timeout=RUN_SECONDS,
    )  # fmt: skip
    sections = dict(
        section.split("]\n", 1) for section in f"\n{done.stdout}".split("\n[")[1:] if "]\n" in section
    )
    lines = [*sections["Unit"].splitlines(), *sections[unit_type.capitalize()].splitlines()]
    names = {name for name, _, kind in (line.partition("=") for line in lines) if kind != "NOTSUPPORTED"}
    assert len(names) > 100
    missing: set[str] = set()
    for name in names:
        try:
            converter_of(name, known)
        except ValueError:
            missing.add(name)
    assert missing <= NOT_PROPERTIES


PAGERS = """
mkdir /run/pagers
for name in pager less more mine; do
    printf '#!/bin/sh\necho runs $0 $LESS $LESSSECURE\ncat >/dev/null\n' >/run/pagers/$name
    chmod +x /run/pagers/$name
done
"""


@pytest.mark.system_instance("which pager it is has nothing to do with an instance")
def test_the_pager_is_that_of_systemctl() -> None:
    run("sh", "-c", PAGERS)
    for variables in (
        {},
        {"PAGER": "mine"},
        {"PAGER": "mine", "SYSTEMD_PAGERSECURE": "0", "SYSTEMD_LESS": "FR"},
        {"PAGER": "cat"},
    ):
        environment = [f"PATH=/run/pagers:{os.environ['PATH']}", "TERM=xterm"]
        environment += [f"{name}={value}" for name, value in variables.items()]
        theirs, ours = (
            # Whatever else they print is not shown by these pagers.
            run("env", *environment, "script", "--quiet", "--return", "--command", command, "/dev/null")
            for command in ("systemctl list-units", "moorctl config")
        )
        if variables == {"PAGER": "cat"}:
            assert "runs" not in ours
            assert "runs" not in theirs
        else:
            assert ours == theirs
            assert ours.startswith("runs /run/pagers/")


def test_spans_are_those_of_systemd() -> None:
    from moorage.quantities import parse_span

    for text in (
        "5",
        "5s",
        "1min 30s",
        "1.5h",
        "2d",
        "1w",
        "1month",
        "1y",
        "100ms",
        "7us",
        "1h30min",
        "3 days",
    ):
        done = subprocess.run(
            ["systemd-analyze", "timespan", text],
            capture_output=True,
            text=True,
            check=True,
            timeout=RUN_SECONDS,
        )
        [usec] = [line.split(":")[1] for line in done.stdout.splitlines() if line.strip().startswith("μs:")]
        assert parse_span(text) == int(usec)
