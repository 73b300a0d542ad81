"""What a unit file can hold, without a manager that writes one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.pid1.errors import InvalidProperty
from moorage.pid1.manager import Json
from moorage.pid1.properties import UnitProperties, check_text

SIGNATURES = {
    "Description": "s", "SyslogIdentifier": "s", "WorkingDirectory": "s", "PIDFile": "s", "StandardOutputFile": "s",
    "User": "s", "Wants": "as", "Documentation": "as", "Environment": "as", "ReadWritePaths": "as",
    "StateDirectory": "as",
    "BindPaths": "a(ssbt)", "TemporaryFileSystem": "a(ss)", "Conditions": "a(sbbs)", "SystemCallFilter": "(bas)",
    "ExecReload": "a(sasb)", "ExecReloadEx": "a(sasas)", "TimeoutStopUSec": "t", "RuntimeMaxUSec": "t",
    "MemoryMax": "t",
    "CPUQuotaPerSecUSec": "t", "MemoryMaxScale": "u", "RestrictNamespaces": "t", "DelegateNamespaces": "t",
    "UMask": "u",
    "SecureBits": "i", "MountImages": "a(ssba(ss))", "SuccessExitStatus": "(aiai)", "IOReadIOPSMax": "a(st)",
    "IODeviceWeight": "a(st)", "IODeviceLatencyTargetUSec": "a(st)",
    "BlockIOReadBandwidth": "a(st)", "BlockIOWriteBandwidth": "a(st)",
    "RootHash": "ay", "SetCredentialEncrypted": "a(say)", "NUMAPolicy": "i", "CPUAffinityFromNUMA": "b",
}  # fmt: skip


def types(version: int = 262) -> UnitProperties:
    found = {name: ("org.freedesktop.systemd1.Service", signature) for name, signature in SIGNATURES.items()}
    return UnitProperties(found, version)


KEPT: list[tuple[str, Json]] = [
    ("Description", "Bücher & 100 % “Ware” %n $HOME; \"a\" 'b' C:\\x #"),
    ("Description", ""),
    ("SyslogIdentifier", "a b"),
    ("WorkingDirectory", "-/srv/a b/c..d/"),
    ("WorkingDirectory", "~"),
    ("Wants", ["machine-a\\x5cb.scope"]),
    ("Environment", ["A=x\nUser=root\n", 'B="%n" \\ \t\x01 ', "C="]),
    ("ReadWritePaths", ["-/srv/a b", "+/srv/100%"]),
    ("BindPaths", [["/srv/100%", "/x", False, 0]]),
    ("Conditions", [["ConditionPathExists", False, True, "/a b"]]),
    ("ExecReload", [["/bin/kill", ["kill", "-HUP", "a\nb", "%n", ";", "'\"\\", "", "ü"], True]]),
    ("ExecReload", [["/bin/true", ["-true"], False], ["/a b", ["/a b"], False]]),
    ("ExecReloadEx", [["/bin/sh", ["sh", "-c", "kill -HUP $MAINPID"], ["no-env-expand", "ignore-failure"]]]),
    ("TimeoutStopUSec", 1),
    ("TimeoutStopUSec", 2**64 - 1),
    ("MemoryMax", 2**64 - 2),
    ("CPUQuotaPerSecUSec", 500_000),
    ("RestrictNamespaces", 0x10000000),
    ("DelegateNamespaces", 0x7E020080),
    ("MountImages", [["/a", "/b", False, [["root", "ro"]]]]),
    ("RootHash", []),
]  # fmt: skip

REFUSED: list[tuple[str, Json, str]] = [
    ("SyslogIdentifier", "x\nUser=root", "a control character"),
    ("SyslogIdentifier", "x\r", "a control character"),
    ("SyslogIdentifier", "\x1b", "a control character"),
    ("SyslogIdentifier", "\x7f", "a control character"),
    ("SyslogIdentifier", "\x85", "a control character"),
    ("SyslogIdentifier", "x\u2028y", "a control character"),
    ("SyslogIdentifier", "\0", "a control character"),
    ("WorkingDirectory", "/\nUser=root", "a control character"),
    ("Description", "x\\", "a backslash at its end"),
    ("Description", " x", "a space at an end"),
    ("User", "alice\\", "a backslash at its end"),
    ("WorkingDirectory", "-/a/../b", "a path with"),
    ("PIDFile", "/run/%n", "a percent sign"),
    ("StandardOutputFile", "", "nothing in it"),
    ("Documentation", ["man:a", "man:b c"], "a space"),
    ("Environment", ["A\0"], "a NUL"),
    ("ReadWritePaths", ['/a"b'], "a double quote"),
    ("StateDirectory", ["a:b"], "a colon"),
    ("BindPaths", [["/a b", "/c", False, 0]], "a space"),
    ("BindPaths", [["/a", "/c:d", False, 0]], "a colon"),
    ("TemporaryFileSystem", [["/a:b", "ro"]], "a colon"),
    ("Conditions", [["ConditionHost", False, False, "!x"]], '"!" at its beginning'),
    ("SystemCallFilter", [True, ["~read"]], "a tilde"),
    ("ExecReload", [["/bin/true a ; +/bin/sh", ["x"], False]], "a space"),
    ("ExecReload", [["/a//b c", ["/a//b c"], False]], "a space"),
    ("ExecReload", [["+/bin/true", ["true"], False]], "no slash at its beginning"),
    ("ExecReload", [["true", ["true"], False]], "no slash at its beginning"),
    ("ExecReload", [["", ["true"], False]], "no slash at its beginning"),
    ("ExecReload", [["/bin/../true", ["true"], False]], "a path with"),
    ("ExecReload", [["/bin/a'b", ["true"], False]], "a quote"),
    ("ExecReload", [["/bin/", ["true"], False]], "a slash at its end"),
    ("ExecReload", [["/bin/true", [], False]], "no arguments"),
    ("ExecReload", [["/bin/kill", ["kill", "$MAINPID"], False]], "no-env-expand"),
    ("ExecReloadEx", [["/bin/kill", ["kill", "${MAINPID}"], ["ignore-failure"]]], "no-env-expand"),
    ("TimeoutStopUSec", 0, "infinity"),
    ("RuntimeMaxUSec", 2**64 - 2, "infinity"),
    ("CPUQuotaPerSecUSec", 99, "0.01 %"),
    ("MemoryMaxScale", 1000, "0.01 %"),
    ("RestrictNamespaces", 0, "allow all"),
    ("RestrictNamespaces", 1, "allow all"),
    ("DelegateNamespaces", 0x10000000, "delegate all"),
    ("UMask", 0o10000, "mode"),
    ("SuccessExitStatus", [[], [0]], "signal"),
    ("IOReadIOPSMax", [["/dev/a", 0]], "no limit"),
    ("IOReadIOPSMax", [["/dev/a", 10], ["sda", 10]], "“sda” is not an absolute path"),
    ("IOReadIOPSMax", [["", 10]], "“” is not an absolute path"),
    ("IODeviceWeight", [["./sda", 10]], "“./sda” is not an absolute path"),
    ("IODeviceLatencyTargetUSec", [["sda", 10]], "“sda” is not an absolute path"),
    ("RootHash", [1], "16 bytes"),
    ("SetCredentialEncrypted", [["a", [65]]], "lost"),
    ("NUMAPolicy", 1, "lost"),
    ("CPUAffinityFromNUMA", False, "true"),
]  # fmt: skip

ROUNDED: list[tuple[str, int, int]] = [
    ("TimeoutStopUSec", 999, 999),
    ("TimeoutStopUSec", 1999, 1000),
    ("CPUQuotaPerSecUSec", 1234, 1200),
    ("MemoryMaxScale", 2**31, 2**31),
    ("MemoryMaxScale", 2**31 - 9, 2**31),
    ("MemoryMaxScale", 2**32 - 1, 2**32 - 1),
    ("RestrictNamespaces", 2**64 - 1, 0x7E020080),
]


@pytest.mark.parametrize(("name", "value"), KEPT)
def test_what_a_unit_file_can_hold(name: str, value: Json) -> None:
    types().convert({name: value})


@pytest.mark.parametrize(("name", "value", "reason"), REFUSED)
def test_what_no_unit_file_can_hold_is_refused_by_name(name: str, value: Json, reason: str) -> None:
    with pytest.raises(InvalidProperty) as caught:
        types().convert({name: value})
    assert caught.value.property == name
    assert reason in caught.value.reason


@pytest.mark.parametrize(("name", "asked", "sent"), ROUNDED)
def test_numbers_are_rounded_as_the_file_would_round_them(name: str, asked: int, sent: int) -> None:
    (converted,) = types().convert({name: asked})
    assert converted.value == sent
    (again,) = types().convert({name: sent})
    assert again.value == sent


@pytest.mark.parametrize(("name", "value"), [("SecureBits", 64), ("MountImages", [["/a", "/b", False, []]])])
def test_what_older_versions_lose(name: str, value: Json) -> None:
    types(262).convert({name: value})
    with pytest.raises(InvalidProperty, match=name):
        types(257).convert({name: value})


def test_what_would_empty_the_other_is_refused() -> None:
    both: dict[str, Json] = {
        name: [["/dev/a", 100]] for name in ("BlockIOReadBandwidth", "BlockIOWriteBandwidth")
    }
    for name, value in both.items():
        types().convert({name: value})
    with pytest.raises(InvalidProperty, match="together with BlockIOWriteBandwidth"):
        types().convert(both)


@given(
    st.sampled_from(sorted(name for name, signature in SIGNATURES.items() if signature == "s")), st.text()
)
def test_no_string_ends_its_line(name: str, text: str) -> None:
    refused = False
    try:
        check_text(name, text)
    except InvalidProperty:
        refused = True
    controls = any(character < " " or "\x7f" <= character < "\xa0" for character in text)
    assert refused or not (controls or text.endswith("\\") or text.strip(" ") != text)
