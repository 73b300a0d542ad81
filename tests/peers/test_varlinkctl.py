"""varlinkctl of systemd 257 and 262, in a sandbox of each."""

import json
import re
from collections.abc import Generator
from pathlib import Path

import pytest
from sandboxes import CHECKOUT, Sandbox

SOCKET = "/run/moorage-peers"
NAME = "org.example.peer"
DESCRIPTIONS = sorted(
    path.relative_to(CHECKOUT)
    for directory in ("interfaces", "service/moorage/wire")
    for path in (CHECKOUT / directory).glob("*.varlink")
)


@pytest.fixture(scope="module")
def inside(sandbox: Sandbox) -> Generator[Sandbox]:
    """A sandbox in which served.py listens."""
    program = "/moorage" / Path(__file__).with_name("served.py").relative_to(CHECKOUT)
    with sandbox.spawn(["python3", "-u", str(program), SOCKET]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield sandbox
        sandbox.run(["rm", SOCKET])
        process.terminate()


def lines(text: str) -> list[dict[str, object]]:
    """The objects of a JSON sequence (RFC 7464), as `--json=short` with `--more` prints it."""
    return [json.loads(line) for line in text.replace("\x1e", "").splitlines() if line.strip()]


def test_info(inside: Sandbox) -> None:
    info = json.loads(inside.run(["varlinkctl", "--json=short", "info", SOCKET]).stdout)
    assert info == {
        "vendor": "Moorage",
        "product": "Peers",
        "version": "1",
        "url": "https://example.org",
        "interfaces": ["org.example.peer", "org.varlink.certification", "org.varlink.service"],
    }
    assert "Product: Peers" in inside.run(["varlinkctl", "info", SOCKET]).stdout
    names = inside.run(["varlinkctl", "list-interfaces", SOCKET]).stdout.split()
    assert names == info["interfaces"]


# Not that of the certification dialogue: systemd's parser does not know array types inside others.
@pytest.mark.parametrize("interface", ["org.example.peer", "org.varlink.service"])
def test_introspect(inside: Sandbox, interface: str) -> None:
    shown = inside.run(["varlinkctl", "introspect", SOCKET, interface]).stdout
    assert f"interface {interface}" in shown
    methods = inside.run(["varlinkctl", "list-methods", SOCKET, interface]).stdout.split()
    assert methods
    assert all(method.startswith(f"{interface}.") for method in methods)


def test_call(inside: Sandbox) -> None:
    parameters = {"text": "ä\n", "number": 2**62}
    done = inside.run(["varlinkctl", "--json=short", "call", SOCKET, f"{NAME}.Echo", json.dumps(parameters)])
    assert json.loads(done.stdout) == parameters
    pretty = inside.run(
        ["varlinkctl", "--json=pretty", "call", SOCKET, f"{NAME}.Echo", json.dumps(parameters)]
    )
    assert json.loads(pretty.stdout) == parameters
    nothing = inside.run(["varlinkctl", "--json=short", "call", SOCKET, f"{NAME}.Note", '{"text":"called"}'])
    assert nothing.stdout.strip() in {"", "{}", "null"}


def test_more(inside: Sandbox) -> None:
    command = ["varlinkctl", "--json=short", "--more", "call", SOCKET, f"{NAME}.Count", '{"to":4}']
    assert lines(inside.run(command).stdout) == [{"number": number} for number in range(4)]


def test_collect(inside: Sandbox) -> None:
    command = ["varlinkctl", "--json=short", "--collect", "call", SOCKET, f"{NAME}.Count", '{"to":4}']
    assert json.loads(inside.run(command).stdout) == [{"number": number} for number in range(4)]


def test_oneway(inside: Sandbox) -> None:
    assert (
        inside.run(["varlinkctl", "--oneway", "call", SOCKET, f"{NAME}.Note", '{"text":"oneway"}']).stdout
        == ""
    )
    notes = json.loads(
        inside.run(["varlinkctl", "--json=short", "call", SOCKET, f"{NAME}.Notes", "{}"]).stdout
    )
    assert "oneway" in notes["notes"]


@pytest.mark.parametrize(
    ("method", "parameters", "error", "told"),
    [
        (f"{NAME}.Fail", '{"reason":"why"}', "org.example.peer.Failed", '{"reason":"why"}'),
        (f"{NAME}.Echo", "{}", "InvalidParameter|Invalid argument", '{"parameter":"text"}'),
        (f"{NAME}.Echo", '{"text":"a","x":1}', "InvalidParameter|Invalid argument", '{"parameter":"x"}'),
        (f"{NAME}.Nope", "{}", "MethodNotFound|No such device", '{"method":"org.example.peer.Nope"}'),
        (
            "org.nope.X",
            "{}",
            "InterfaceNotFound|Cannot assign requested address",
            '{"interface":"org.nope"}',
        ),
        ("org.varlink.certification.Test10", "{}", "ExpectedMore|without 'more' flag", "{}"),
    ],
)
def test_errors(inside: Sandbox, method: str, parameters: str, error: str, told: str) -> None:
    """257 prints the error's name, 262 for some of them what it means."""
    done = inside.run(["varlinkctl", "--json=short", "call", SOCKET, method, parameters], check=False)
    assert done.returncode != 0
    assert re.search(error, done.stderr)
    assert done.stdout.strip() in {told, ""}
    assert done.stdout.strip() == told or inside.systemd < 262


def test_graceful_error_is_a_reply(inside: Sandbox) -> None:
    command = ["varlinkctl", f"--graceful={NAME}.Failed", "--json=short", "call", SOCKET, f"{NAME}.Fail"]
    done = inside.run([*command, '{"reason":"why"}'])
    assert json.loads(done.stdout) == {"reason": "why"}


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda path: path.stem)
def test_our_descriptions_are_valid(inside: Sandbox, description: Path) -> None:
    # The type `any`, which an interface of systemd 262 has, is newer than 257.
    known = inside.systemd >= 262 or not re.search(r": any\b", description.read_text())
    done = inside.run(["varlinkctl", "validate-idl", f"/moorage/{description}"], check=known)
    assert (done.returncode == 0) == known
