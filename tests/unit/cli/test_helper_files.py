"""Files of helpers: what they may say, and what is told of them."""

import contextlib
import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from property_types import TYPES

from moorage import names
from moorage.addresses import SYSTEM_SOCKET
from moorage.api.descriptions import load_description
from moorage.cli import helper_files
from moorage.cli.address import Address
from moorage.cli.helper_files import FILE_BYTES_MAX, expand, explain, load, parse, runtime_directory
from moorage.names import UnitNames

KNOWN = {**TYPES["service"], "A": "a(ad)"}
SPECIFIERS = {"n": "web", "t": "/run/moorage/m/web", "u": "0"}

FULL = """
command = ["vmm", "--name=%n", "--socket=%t/fs.sock"]

[helpers.fs]
execStart = ["/usr/libexec/virtiofsd", "--fd=3", "--shared-dir=/srv/%n", "100%%"]
type = "exec"
sockets = [{ name = "fs.sock", type = "stream", mode = 0o660 }, { name = "other" }]
after = ["tpm"]
onFailure = "stopMachine"
restart = "no"
[helpers.fs.properties]
MemoryMax = "512M"
TimeoutStopSec = "5s"
BindPaths = [["/srv/%n", "/srv", false, 0]]
DynamicUser = false

[helpers.tpm]
execStart = ["/usr/bin/swtpm"]
"""


def sent(text: str) -> list[dict[str, object]]:
    """The helpers of a file as they are sent."""
    return json.loads(msgspec.json.encode(expand(parse(text), SPECIFIERS, KNOWN).helpers))


def test_all_that_may_be_said() -> None:
    assert expand(parse(FULL), SPECIFIERS, KNOWN).command == [
        "vmm",
        "--name=web",
        "--socket=/run/moorage/m/web/fs.sock",
    ]
    assert sent(FULL) == [
        {
            "name": "fs",
            "execStart": ["/usr/libexec/virtiofsd", "--fd=3", "--shared-dir=/srv/web", "100%"],
            "type": "exec",
            "sockets": [{"name": "fs.sock", "type": "stream", "mode": 0o660}, {"name": "other"}],
            "after": ["tpm"],
            "onFailure": "stopMachine",
            "restart": "no",
            "properties": {
                "MemoryMax": 512 * 1024 * 1024,
                "TimeoutStopUSec": 5_000_000,
                "BindPaths": [["/srv/web", "/srv", False, 0]],
                "DynamicUser": False,
            },
        },
        {"name": "tpm", "execStart": ["/usr/bin/swtpm"]},
    ]


def test_every_field_of_the_interface_can_be_given() -> None:
    [text] = load_description("io.moorage.Machine").split("type Helper (")[1:]
    fields = {line.split(":")[0].strip() for line in text.split("\n)")[0].splitlines() if ":" in line}
    assert fields == {field.encode_name for field in msgspec.structs.fields(helper_files.Helper)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("=", "the file is not TOML: Invalid statement"),
        ("x = 1", "unknown field `x`"),
        ("command = 'a b'", "command: Expected `array`"),
        ("command = ['a', 1]", "command[1]: Expected `str`"),
        ("helpers = 1", "helpers: Expected `object`"),
        ("[helpers.a]", "helpers.a: Object missing required field `execStart`"),
        ("[helpers.a]\nexecStart = '/x'", "helpers.a.execStart: Expected `array`"),
        ("[helpers.a]\nexecStart = ['/x', 1]", "helpers.a.execStart[1]: Expected `str`"),
        ("[helpers.a]\nname = 'b'\nexecStart = ['/x']", "helpers.a.name"),
        ("[helpers.a]\nexec = ['/x']\nexecStart = ['/x']", "helpers.a: Object contains unknown field `exec`"),
        ("[helpers.a]\nexecStart = ['/x']\nonFailure = 'panic'", "helpers.a.onFailure: Invalid enum value 'panic'"),
        ("[helpers.a]\nexecStart = ['/x']\nsockets = ['s']", "helpers.a.sockets[0]: Expected `object`"),
        ("[helpers.a]\nexecStart = ['/x']\nsockets = [{}]", "helpers.a.sockets[0]: Object missing required field"),
        ("[helpers.a]\nexecStart = ['/x']\nproperties = {A = " + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
        ("[helpers.a]\nexecStart = ['/x']\nproperties = 1", "helpers.a.properties: Expected `object`"),
        ("a = " + "[" * 5000, "nested too deeply"),
    ],
)  # fmt: skip
def test_what_may_not_be_said_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("command = ['%x']", "command: there is no specifier '%x'; choose from %n, %t, %u and %%"),
        ("command = ['100%']", "command: there is no specifier '%'"),
        ("[helpers.a]\nexecStart = ['/x', '%x']", "helpers.a: there is no specifier '%x'"),
        (
            "[helpers.a]\nexecStart = ['/x']\nproperties = {A = [['%x']]}",
            "helpers.a.properties: there is no specifier '%x'",
        ),
        (
            "[helpers.a]\nexecStart = ['/x']\nproperties = {TasksMax = 'x'}",
            "helpers.a.properties: TasksMax: 'x'",
        ),
        (
            "[helpers.a]\nexecStart = ['/x']\nproperties = {SyslogIdentifier = '50%x'}",
            "helpers.a.properties: there is no specifier '%x'",
        ),
    ],
)
def test_what_cannot_be_expanded(text: str, words: str) -> None:
    given_ = parse(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        expand(given_, SPECIFIERS, KNOWN)


def test_without_a_service_properties_stay_as_they_are_written() -> None:
    [helper] = expand(parse(FULL), SPECIFIERS, None).helpers[:1]
    assert helper.properties == {
        "MemoryMax": "512M",
        "TimeoutStopSec": "5s",
        "BindPaths": [["/srv/web", "/srv", False, 0]],
        "DynamicUser": False,
    }


def test_properties_as_in_a_unit_file() -> None:
    text = """
[helpers.a]
execStart = ["/x"]
[helpers.a.properties]
MemoryMax = "64M"
MemoryHigh = "50%"
CPUQuota = "150%"
TimeoutStopSec = 5
RestartSec = 0.5
RuntimeMaxSec = "5min"
NoNewPrivileges = "yes"
PrivateTmp = true
UMask = "0027"
LogExtraFields = ["MACHINE=%n", "SHARE=50%"]
DeviceAllow = ["/dev/kvm rw", "/dev/net/tun r"]
ReadWritePaths = ["/a b", "/%n"]
BindPaths = "/srv/%n:/srv"
Environment = "A=%u 'B=%t x'"
"""
    [helper] = sent(text)
    assert helper["properties"] == {
        "MemoryMax": 64 << 20,
        "MemoryHighScale": 2147483648,
        "CPUQuotaPerSecUSec": 1_500_000,
        "TimeoutStopUSec": 5_000_000,
        "RestartUSec": 500_000,
        "RuntimeMaxUSec": 300_000_000,
        "NoNewPrivileges": True,
        "PrivateTmp": True,
        "UMask": 0o27,
        "LogExtraFields": [list(b"MACHINE=web"), list(b"SHARE=50%")],
        "DeviceAllow": [["/dev/kvm", "rw"], ["/dev/net/tun", "r"]],
        "ReadWritePaths": ["/a b", "/web"],
        "BindPaths": [["/srv/web", "/srv", False, 16384]],
        "Environment": ["A=0", "B=/run/moorage/m/web x"],
    }


@given(st.text())
def test_text_without_specifiers_stays(text: str) -> None:
    given_ = helper_files.HelperSet([text.replace("%", "%%")])
    assert expand(given_, SPECIFIERS, KNOWN).command == [text]


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse(text)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(ValueError, match="larger than"):
        load(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="utf-8"):
        load(str(path))
    with pytest.raises(OSError, match="No such file"):
        load(str(tmp_path / "none"))


def explained(text: str, machine: str = "web") -> list[str]:
    return list(explain(expand(parse(text), SPECIFIERS, KNOWN), machine, "/run/moorage/m/web"))


def test_what_is_told() -> None:
    assert explained(FULL) == [
        "Command: vmm --name=web --socket=/run/moorage/m/web/fs.sock …",
        "Runtime directory: /run/moorage/m/web",
        "Helper tpm",
        "  Unit: machine-web-tpm.service",
        "  Executes: /usr/bin/swtpm",
        "  When it fails: the machine goes on",
        "Helper fs",
        "  Unit: machine-web-fs.service",
        "  Executes: /usr/libexec/virtiofsd --fd=3 --shared-dir=/srv/web 100%",
        "  Socket: /run/moorage/m/web/fs.sock, stream, mode 0660, passed as file descriptor 3",
        "  Socket: /run/moorage/m/web/other, stream, mode 0600, passed as file descriptor 4",
        "  Starts after: tpm",
        "  When it ends: the machine is stopped",
        "  Property: MemoryMax=512M",
        "  Property: TimeoutStopSec=5s",
        '  Property: BindPaths=[["/srv/web","/srv",false,0]]',
        "  Property: DynamicUser=false",
    ]


@pytest.mark.parametrize(
    ("after", "words"), [(["b"], "no helper 'b'"), (["a"], "circular: a -> a"), (["c"], "circular:")]
)
def test_an_order_that_there_is_not(after: list[str], words: str) -> None:
    text = (
        f"[helpers.a]\nexecStart = ['/x']\nafter = {after}\n[helpers.c]\nexecStart = ['/x']\nafter = ['a']"
    )
    with pytest.raises(ValueError, match="after") as refused:
        explained(text)
    assert words in str(refused.value)


@pytest.mark.parametrize("machine", ["web", "a-b", "a:b", "a\\b", "a.b_c@d"])
def test_the_names_are_those_of_the_service(machine: str) -> None:
    """What the service is the judge of, and a file has to know before it is asked."""
    lines = explained("[helpers.x-y]\nexecStart = ['/x']", machine)
    assert f"  Unit: {UnitNames(machine).helper('x-y')}" in lines
    system = Address(SYSTEM_SOCKET, "systemctl")
    assert runtime_directory(machine, system) == f"/run/moorage/m/{names.directory_name(machine)}"


def test_the_directory_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert runtime_directory("web", Address("/x", "systemctl --user")) == "/run/user/7/moorage/m/web"
    assert runtime_directory("web", Address("/x", None)) == "/run/moorage/m/web"
