"""What systemd's own tests of machined ask of it about machines, asked of moored in machined's place.

The scripts are read from Debian's package of systemd's tests. What they do with images is left out, of which moored
has none: their containers are started by their units. So is what they do with machined's own log, and with containers
that systemd-nspawn starts for a user (docs/in-place-of-machined.md says why).
"""

import re
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

TESTS = Path("/usr/lib/systemd/tests/testdata/units")
SCRIPT = TESTS / "TEST-13-NSPAWN.machined.sh"
TEMPLATE = Path("/usr/share/TEST-13-NSPAWN-container-template")
"""Where the script looks for the root directory of its containers."""
PROGRAMS = ("env", "ip", "sleep", "touch", "timeout", "mkdir", "cat", "rm", "ls")
SECONDS = 50.0
UNPRIVILEGED = SCRIPT.with_name("TEST-13-NSPAWN.unpriv.sh")
HER_UID = 4711
"""Of testuser in systemd's images, which that script takes for granted."""
RULES = Path("/etc/polkit-1/rules.d/registermachinetest.rules")
BIND = "testcase_machinectl_bind"
STOP = "systemctl stop 'systemd-nspawn@*.service'; rm -f /run/systemd/system/systemd-nspawn@.service.d/debug.conf"
GETTY = Path("/etc/systemd/system/container-getty@.service")
"""Masked in a sandbox."""
DROP_IN = Path("/run/systemd/system/systemd-nspawn@.service.d/sandbox.conf")

BEGINS_MACHINES = "\nmachinectl\n"
ENDS_MACHINES = "\n# machinectl bind is covered"
BEGINS_VARLINK = "\n# varlinkctl tests #\n"
ENDS_VARLINK = "\n# Terminating machine, otherwise acquiring image metadata"
LEFT_OUT = re.compile(
    r"MachineImage|PoolPath|service-log-level|journalctl|^TS="
    r"|machinectl (enable|disable)|machines.target.wants"
)
"""Lines about images, where enable and disable begin too, about the pool of them, and about what machined logs."""


def parts(text: str) -> dict[str, str]:
    """Cut the script: what it prepares, what it does with machinectl, and with varlinkctl."""
    begin, machines, rest = (
        text.index(BEGINS_MACHINES),
        text.index(ENDS_MACHINES),
        text.index(BEGINS_VARLINK),
    )
    return {
        "prepare": text[:begin].replace("{0..4}", "{0..1}"),
        "machinectl": text[begin:machines],
        "varlinkctl": text[rest + len(BEGINS_VARLINK) : text.index(ENDS_VARLINK)],
        "bind": bind(),
    }


def unprivileged() -> str:
    """Cut the script of what users without privileges try: what they may register, and what they learn by it."""
    text = UNPRIVILEGED.read_text()
    rule = text.index("# Install a PK rule")
    rest = text.index("run0 -u testuser mkdir -p .config/systemd/nspawn/")
    begin = text.index("(! run0 -u testuser \\\n    busctl call")
    end = text.index("run0 -u testuser mkdir /var/tmp/image-tar")
    head = 'set -eux\nset -o pipefail\n. "$(dirname "$0")"/util.sh\n'
    return f"{head}{text[rule:rest]}{text[begin:end]}"


def bind() -> str:
    """Return what the script of systemd-nspawn does about mounts."""
    text = SCRIPT.with_name("TEST-13-NSPAWN.nspawn.sh").read_text()
    (found,) = re.findall(rf"^{BIND}\(\) {{.*?^}}", text, re.MULTILINE | re.DOTALL)
    nspawn = "Environment=SYSTEMD_SECCOMP=0\nExecStart=systemd-nspawn"
    return f"{found.replace('ExecStart=systemd-nspawn', nspawn)}\n{BIND}\n"


@pytest.fixture(scope="module")
def template() -> Generator[None]:
    """A root directory with bash and busybox."""
    for name in ("usr/bin", "usr/lib", "usr/sbin", "etc", "root", "proc", "sys", "dev", "run", "tmp", "var"):
        (TEMPLATE / name).mkdir(parents=True)
    for name in ("bin", "lib", "sbin"):
        (TEMPLATE / name).symlink_to(f"usr/{name}")
    (TEMPLATE / "lib64").symlink_to("usr/lib")
    (TEMPLATE / "etc/os-release").write_text("ID=test\n")
    shutil.copy("/usr/bin/bash", TEMPLATE / "usr/bin")
    for name in PROGRAMS:
        shutil.copy("/bin/busybox", TEMPLATE / "usr/bin" / name)
    needed = subprocess.run(["ldd", "/usr/bin/bash"], check=True, capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+)", needed):
        shutil.copy(library, TEMPLATE / "usr/lib")
    (TEMPLATE / "usr/sbin/init").touch(0o755)
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text("[Service]\nEnvironment=SYSTEMD_SECCOMP=0\n")
    GETTY.unlink()
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    yield
    GETTY.symlink_to("/dev/null")
    DROP_IN.unlink()
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    shutil.rmtree(TEMPLATE)


@pytest.mark.parametrize("part", ["machinectl", "varlinkctl", "bind"])
def test_what_systemd_asks_of_machined(in_place: None, template: None, tmp_path: Path, part: str) -> None:
    text = re.sub(
        r"machinectl start ([^\n]*)", r"systemctl start systemd-nspawn@\1.service", SCRIPT.read_text()
    )
    # A machine that is a part of a unit ends with its leader here: with varlinkctl, if the call names nobody else.
    text = text.replace(
        '"registered-container", "class": "container"',
        '"registered-container", "class": "container", "leader": \'$$\'',
    )
    # The kernel need not have such devices; a container has one of nspawn's.
    text = text.replace("ip link add hoge type dummy", ":").replace("hoge", "host0")
    found = parts(text.replace('@"', "@").replace('".service', ".service"))
    lines = [line for line in f"{found['prepare']}\n{found[part]}".splitlines() if not LEFT_OUT.search(line)]
    runs(tmp_path, SCRIPT.name, [*lines, STOP])


@pytest.fixture
def testuser() -> Generator[None]:
    """The user of these scripts goes when they are over."""
    yield
    RULES.unlink(missing_ok=True)
    subprocess.run(["loginctl", "disable-linger", "testuser"], check=True)
    subprocess.run(["systemctl", "stop", f"user@{HER_UID}.service"], check=True)


AS_OF_ZURPS = """
run0 -u testuser systemd-run --unit zurps.service --user sleep infinity
zurps_pid="$(run0 -u testuser systemctl show --user -P MainPID zurps.service)"
run0 -u testuser varlinkctl call /run/systemd/machine/io.systemd.Machine io.systemd.Machine.Register \\
    "{\\"name\\":\\"zurps\\", \\"class\\":\\"container\\", \\"leader\\": $zurps_pid}"
machinectl status zurps
machinectl status zurps | grep "UID:" | grep "$(id -u testuser)"
machinectl status zurps | grep "Unit: user@" | grep "$(id -u testuser)"
machinectl status zurps | grep "Subgroup: app.slice/zurps.service"
machinectl terminate zurps
timeout 30 bash -c 'while run0 -u testuser systemctl is-active --user zurps.service; do sleep 0.1; done'
"""
"""What the script asks about a container that systemd-nspawn runs for a user, which it cannot in a sandbox, of a
service of that user."""


def test_what_users_try_with_machined(in_place: None, testuser: None, tmp_path: Path) -> None:
    runs(tmp_path, UNPRIVILEGED.name, [*unprivileged().splitlines(), *AS_OF_ZURPS.splitlines()])


def runs(directory: Path, name: str, lines: list[str]) -> None:
    """Run a script to its end."""
    add = ["useradd", "--create-home", f"--uid={HER_UID}", "testuser"]
    subprocess.run(add, check=False, capture_output=True)  # it is there by the second script
    for each in ("util.sh", "test-control.sh"):
        if (TESTS / each).exists():
            shutil.copy(TESTS / each, directory)
    script = directory / name
    script.write_text("\n".join([*lines, ": all of it\n"]))
    done = subprocess.run(
        ["bash", str(script)],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
    )
    assert done.returncode == 0, re.sub(r".*(?:target is busy|NoSuchMachine)\n", "", done.stderr)[-3000:]
    assert "+ : all of it" in done.stderr
