"""The examples do what they say, from the outside."""

import base64
import secrets
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from sandboxes import CHECKOUT, RUN_SECONDS, Sandbox

EXAMPLES = CHECKOUT / "examples"
COMPILE_SECONDS = 60.0

PYTHON = ("launcher.py", "launcher-asyncio.py", "launcher-blocking.py")

LAUNCHERS = (*PYTHON, "launcher.sh", "launcher")
"""The last one is compiled on the host, without shared libraries: a sandbox has no compiler."""

UNTIL_GONE = """
for try in $(seq 400); do
    [ -z "$(systemctl list-units --all --plain --no-legend "machine-$1*")" ] && exit 0
    sleep 0.05
done
systemctl list-units --all "machine-$1*"
exit 1
"""

RESTART = """
import sys, time
sys.path[:0] = ["/moorage/tests/support"]
from moored import LOST, UNTIL_SECONDS, lost_lease, run
with lost_lease() as leases_lost:
    run("systemctl", "restart", "moored.service")
    deadline = time.monotonic() + UNTIL_SECONDS
    while LOST not in (lost := leases_lost()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert lost == {LOST}, lost
"""
"""It lasts until the new instance ends machines whose launchers have not come back."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The launcher in C, in base64."""
    program = tmp_path_factory.mktemp("examples") / "launcher"
    options = ["-std=c17", "-Wall", "-Wextra", "-Werror", "-O2", "-static"]
    source = str(EXAMPLES / "launcher.c")
    subprocess.run(["gcc", *options, "-o", str(program), source], check=True, timeout=COMPILE_SECONDS)
    return base64.b64encode(program.read_bytes()).decode()


@pytest.fixture
def place(sandbox: Sandbox, compiled: str) -> str:
    """Directory in the sandbox with the launchers."""
    sandbox.run(["systemctl", "start", "moored.socket"])
    script = "mkdir -p /run/examples && cp /moorage/examples/launcher* /run/examples/ && cd /run/examples &&"
    sandbox.run(["sh", "-c", f"{script} base64 -d >launcher && chmod +x launcher*"], input=compiled)
    return "/run/examples"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher(sandbox: Sandbox, place: str, launcher: str) -> None:
    name = f"example{secrets.token_hex(4)}"
    script = (
        'sed -n s/^0:://p /proc/self/cgroup; [ -z "$HELPER" ] || echo talk | socat -t 20 - UNIX-CONNECT:"$HELPER";'
        '[ -z "$SCOPE" ] || echo "$SCOPE"; exit 7'
    )
    done = sandbox.run([f"{place}/{launcher}", name, "sh", "-c", script], check=False)
    scope = f"machine-{name}.scope"
    group, *told = done.stdout.splitlines()
    assert (done.returncode, group) == (7, f"/machine.slice/{scope}"), done
    assert told == ([] if launcher == "launcher" else ["talk", scope])
    sandbox.run(["sh", "-c", UNTIL_GONE, "sh", name])


@pytest.mark.parametrize("launcher", [*PYTHON, "launcher"])
def test_a_launcher_that_is_killed_leaves_nothing(sandbox: Sandbox, place: str, launcher: str) -> None:
    name = f"killed{secrets.token_hex(4)}"
    with sandbox.spawn(
        [f"{place}/{launcher}", name, "sh", "-c", "echo ready; exec sleep infinity"]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    sandbox.run(["sh", "-c", UNTIL_GONE, "sh", name])


def test_launchers_outlive_an_upgrade(sandbox: Sandbox, place: str) -> None:
    """All at once, as each would wait as long."""
    names = {launcher: f"kept{secrets.token_hex(4)}" for launcher in (*PYTHON, "launcher")}
    program = ["sh", "-c", "echo ready; read -r line; echo $line; exit 5"]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(sandbox.spawn([f"{place}/{launcher}", name, *program]))
            for launcher, name in names.items()
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        sandbox.run(["python3", "-c", RESTART])
        for launcher, process in zip(names, processes, strict=True):
            assert process.communicate("there\n", timeout=RUN_SECONDS)[0] == "there\n", launcher
            assert process.returncode == 5, launcher
    for name in names.values():
        sandbox.run(["sh", "-c", UNTIL_GONE, "sh", name])


@pytest.mark.parametrize("file", sorted((EXAMPLES / "helpers").glob("*.toml")), ids=lambda path: path.stem)
def test_a_file_of_helpers_can_be_told(sandbox: Sandbox, file: Path) -> None:
    inside = f"/moorage/examples/helpers/{file.name}"
    told = sandbox.run(["moorctl", "check", "--offline", "--name", "web", inside]).stdout
    assert "Runtime directory: /run/moorage/m/web\n" in told
    assert "%" not in told


def test_a_virtual_machine_with_a_file_server_and_a_tpm(boot: Callable[..., Sandbox]) -> None:
    """Nothing of it was written here: QEMU finds both at the sockets that the service manager has bound."""
    sandbox = boot()
    sandbox.run(["systemctl", "start", "moored.socket"])
    sandbox.run(["mkdir", "-p", "/srv/web"])
    command = [
        "moorctl",
        "run",
        "--name",
        "web",
        "--helpers",
        "/moorage/examples/helpers/qemu-virtiofs-swtpm.toml",
    ]
    with sandbox.spawn(command, stderr=subprocess.STDOUT) as launcher:
        assert launcher.stdout is not None
        # By then the firmware has asked the TPM, and QEMU has talked to virtiofsd.
        heard = ""
        while "No bootable device" not in heard:
            heard = launcher.stdout.readline()
            assert heard
        connected = sandbox.run(["ss", "-xnp", "state", "established"]).stdout
        for name in ("fs.sock", "tpm.sock"):
            assert f"/run/moorage/m/web/{name}" in connected
        sandbox.run(["pkill", "-KILL", "qemu-system"])
        assert launcher.wait(RUN_SECONDS) == 128 + signal.SIGKILL
    sandbox.run(["sh", "-c", UNTIL_GONE, "sh", "web"])
    sandbox.run(["test", "!", "-e", "/run/moorage/m/web"])


COMPILERS = ",".join((
    "golang-go", "golang-github-emersion-go-varlink-dev",
    "cargo", "rustc", "librust-serde-json-dev", "librust-serde-derive-dev",
))  # fmt: skip
"""In one image."""

BUILD_IN_GO = """
export GOPATH=/run/go:/usr/share/gocode GO111MODULE=off GOCACHE=/run/go/cache CGO_ENABLED=0
mkdir -p /run/go/src/moorage /run/go/src/launcher /run/examples
go run github.com/emersion/go-varlink/cmd/varlinkgen \\
    -i /moorage/interfaces/io.moorage.Machine.varlink -o /run/go/src/moorage/moorage.go
cp /moorage/examples/launcher.go /run/go/src/launcher
go vet launcher
go build -o /run/examples/launcher-go launcher
"""

# Debian has no varlink for Rust: the generator is one of the examples.
BUILD_IN_RUST = """
mkdir -p /run/rust /run/examples
cp -r /moorage/examples/rust/. /run/rust
cd /run/rust
python3 generate.py /moorage/interfaces/io.moorage.Machine.varlink >src/moorage.rs
HOME=/run/rust cargo build --offline --quiet --config 'source.crates-io.replace-with="debian"' \\
    --config 'source.debian.directory="/usr/share/cargo/registry"'
cp target/debug/launcher /run/examples/launcher-rust
"""

BUILD_SECONDS = 300.0
"""The compilers come without a cache, and make their libraries first."""


@pytest.mark.parametrize("suite", ["forky"])
def test_launchers_that_are_compiled(boot: Callable[..., Sandbox]) -> None:
    """In Go the types, the errors and the calls are made by a generator that nobody here has written."""
    sandbox = boot("--packages", COMPILERS)
    sandbox.run(["systemctl", "start", "moored.socket"])
    for build, name in ((BUILD_IN_GO, "launcher-go"), (BUILD_IN_RUST, "launcher-rust")):
        sandbox.run(["sh", "-euc", build], timeout=BUILD_SECONDS)
        check_launcher(sandbox, f"/run/examples/{name}")


def check_launcher(sandbox: Sandbox, launcher: str) -> None:
    script = (
        'sed -n s/^0:://p /proc/self/cgroup; echo talk | socat -t 20 - UNIX-CONNECT:"$HELPER"; echo "$SCOPE"'
    )
    done = sandbox.run([launcher, "web", "sh", "-c", f"{script}; exit 7"], check=False)
    assert (done.returncode, done.stdout.splitlines()) == (
        7,
        ["/machine.slice/machine-web.scope", "talk", "machine-web.scope"],
    ), done
    sandbox.run(["sh", "-c", UNTIL_GONE, "sh", "web"])
    with sandbox.spawn([launcher, "web", "sh", "-c", "echo ready; exec sleep infinity"]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        refused = sandbox.run([launcher, "web", "true"], check=False)
        assert refused.returncode == 1
        assert refused.stderr == "Machine web exists already, in machine-web.scope.\n"
        process.kill()
    sandbox.run(["sh", "-c", UNTIL_GONE, "sh", "web"])
