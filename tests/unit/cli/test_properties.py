"""Properties as people write them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from property_types import TYPES

from moorage.cli.properties import assignments
from moorage.cli.properties.assignments import Signatures, settings, without_names
from moorage.cli.properties.display import assignment
from moorage.cli.properties.irregular import ALIASES, TABLE

KNOWN: Signatures = {**TYPES["service"], **TYPES["scope"], "WhateverB": "b", "WhateverA": "a(dd)"}


def convert(texts: list[str], known: Signatures = KNOWN) -> dict[str, Any]:
    return assignments.convert(texts, known)


def convert_values(values: dict[str, Any], known: Signatures = KNOWN) -> dict[str, Any]:
    return assignments.convert_values(values, known)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MemoryMax=1G", {"MemoryMax": 1 << 30}),
        ("MemoryMax=infinity", {"MemoryMax": "infinity"}),
        ("MemoryMax=", {"MemoryMax": "infinity"}),
        ("MemoryLow=", {"MemoryLow": 0}),
        ("MemoryMax=50%", {"MemoryMaxScale": 2147483648}),
        ("MemoryHigh=100%", {"MemoryHighScale": 2**32 - 1}),
        ("TasksMax=100", {"TasksMax": 100}),
        ("TasksMax=12.5%", {"TasksMaxScale": 536870912}),
        ("CPUQuota=50%", {"CPUQuotaPerSecUSec": 500_000}),
        ("CPUQuota=250%", {"CPUQuotaPerSecUSec": 2_500_000}),
        ("CPUQuota=", {"CPUQuotaPerSecUSec": "infinity"}),
        ("CPUQuotaPeriodSec=10ms", {"CPUQuotaPeriodUSec": 10_000}),
        ("CPUWeight=200", {"CPUWeight": 200}),
        ("CPUWeight=idle", {"CPUWeight": 0}),
        ("IOWeight=", {"IOWeight": "infinity"}),
        ("AllowedCPUs=0-3,8 9", {"AllowedCPUs": [15, 3]}),
        ("AllowedCPUs=", {"AllowedCPUs": []}),
        ("TimeoutStopSec=5s", {"TimeoutStopUSec": 5_000_000}),
        ("TimeoutStopSec=infinity", {"TimeoutStopUSec": "infinity"}),
        ("RuntimeMaxSec=1h 30min", {"RuntimeMaxUSec": 5_400_000_000}),
        ("Delegate=yes", {"Delegate": True}),
        ("Delegate=cpu memory", {"DelegateControllers": ["cpu", "memory"]}),
        ("KillSignal=SIGINT", {"KillSignal": 2}),
        ("SendSIGHUP=on", {"SendSIGHUP": True}),
        ("OOMPolicy=kill", {"OOMPolicy": "kill"}),
        ("After=a.service 'b c.service'", {"After": ["a.service", "b c.service"]}),
        ("DeviceAllow=/dev/kvm rw", {"DeviceAllow": [["/dev/kvm", "rw"]]}),
        ("DeviceAllow=char-pts", {"DeviceAllow": [["char-pts", ""]]}),
        ('DeviceAllow=[["/dev/kvm","rw"]]', {"DeviceAllow": [["/dev/kvm", "rw"]]}),
        ("IOReadBandwidthMax=/dev/vda 10M", {"IOReadBandwidthMax": [["/dev/vda", 10_000_000]]}),
        ("IOWriteIOPSMax=/dev/vda infinity", {"IOWriteIOPSMax": [["/dev/vda", "infinity"]]}),
        ("IODeviceWeight=/dev/vda 200", {"IODeviceWeight": [["/dev/vda", 200]]}),
        ("IODeviceLatencyTargetSec=/dev/vda 25ms", {"IODeviceLatencyTargetUSec": [["/dev/vda", 25_000]]}),
        ("IPAddressAllow=192.0.2.1", {"IPAddressAllow": [[2, [192, 0, 2, 1], 32]]}),
        ("IPAddressDeny=any", {"IPAddressDeny": [[2, [0] * 4, 0], [10, [0] * 16, 0]]}),
        ("BPFProgram=egress:/sys/fs/bpf/x", {"BPFProgram": [["egress", "/sys/fs/bpf/x"]]}),
        ("ManagedOOMMemoryPressureLimit=60%", {"ManagedOOMMemoryPressureLimit": 2576980377}),
        ("CPUQuotaPerSecUSec=500000", {"CPUQuotaPerSecUSec": 500_000}),
        ("CPUQuotaPerSecUSec=500ms", {"CPUQuotaPerSecUSec": 500_000}),
        ("WhateverB=true", {"WhateverB": True}),
        ("WhateverA=[[1, 2.5]]", {"WhateverA": [[1, 2.5]]}),
        ('Description="[text]"', {"Description": '"[text]"'}),
    ],
)  # fmt: skip
def test_one(text: str, expected: dict[str, Any]) -> None:
    assert convert([text]) == expected


EVERY = 0x7E020080
"""All namespaces, as flags of clone(2)."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NoNewPrivileges=yes", {"NoNewPrivileges": True}),
        ("TimeoutSec=5", {"TimeoutStartUSec": 5_000_000, "TimeoutStopUSec": 5_000_000}),
        ("Environment=A=1 'B=x y' C=\\n", {"Environment": ["A=1", "B=x y", "C=\n"]}),
        (r"Environment=\xc3\xa4\u00e4\101 a\sb", {"Environment": ["ääA", "a b"]}),
        ("ReadWritePaths=a\\b 'c d'e", {"ReadWritePaths": ["ab", "c de"]}),
        ("ExecSearchPath=/a:/b /c", {"ExecSearchPath": ["/a", "/b", "/c"]}),
        ("SystemCallFilter=~@mount", {"SystemCallFilter": [False, ["@mount"]]}),
        ("RestrictAddressFamilies=", {"RestrictAddressFamilies": [True, []]}),
        ("SystemCallErrorNumber=EPERM", {"SystemCallErrorNumber": 1}),
        ("SystemCallErrorNumber=kill", {"SystemCallErrorNumber": 2**31 - 2}),
        ("CapabilityBoundingSet=CAP_CHOWN 1", {"CapabilityBoundingSet": 3}),
        ("CapabilityBoundingSet=~cap_chown", {"CapabilityBoundingSet": 2**64 - 2}),
        ("CapabilityBoundingSet=", {"CapabilityBoundingSet": 0}),
        ("AmbientCapabilities=CAP_CHECKPOINT_RESTORE", {"AmbientCapabilities": 1 << 40}),
        ("RestrictNamespaces=yes", {"RestrictNamespaces": 0}),
        ("RestrictNamespaces=no", {"RestrictNamespaces": EVERY}),
        ("RestrictNamespaces=user", {"RestrictNamespaces": 0x10000000}),
        ("RestrictNamespaces=~user", {"RestrictNamespaces": EVERY & ~0x10000000}),
        ("DelegateNamespaces=yes", {"DelegateNamespaces": EVERY & ~0x10000000}),
        ("BindPaths=/a", {"BindPaths": [["/a", "/a", False, 16384]]}),
        ("BindPaths=-/a:/b:norbind '/c d'", {"BindPaths": [["/a", "/b", True, 0], ["/c d", "/c d", False, 16384]]}),
        ("TemporaryFileSystem=/a:ro,size=1 /b", {"TemporaryFileSystem": [["/a", "ro,size=1"], ["/b", ""]]}),
        ("StateDirectory=a b:c", {"StateDirectory": ["a"], "StateDirectorySymlink": [["b", "c", 0]]}),
        ("StateDirectory=d::ro", {"StateDirectorySymlink": [["d", "", 1]]}),
        ("StateDirectoryQuota=50%", {"StateDirectoryQuota": [2**64 - 1, 2147483648, "yes"]}),
        ("StateDirectoryQuota=1M", {"StateDirectoryQuota": [1 << 20, 2**32 - 1, "yes"]}),
        ("StateDirectoryQuota=off", {"StateDirectoryQuota": [2**64 - 1, 2**32 - 1, "no"]}),
        ("PrivateTmp=disconnected", {"PrivateTmpEx": "disconnected"}),
        ("PrivateUsers=no", {"PrivateUsers": False}),
        ("ProtectHostname=private:a", {"ProtectHostnameEx": ["private", "a"]}),
        ("LimitNOFILE=1:2", {"LimitNOFILE": 2, "LimitNOFILESoft": 1}),
        ("LimitNOFILE=infinity", {"LimitNOFILE": "infinity", "LimitNOFILESoft": "infinity"}),
        ("LimitCORE=1K:infinity", {"LimitCORE": "infinity", "LimitCORESoft": 1024}),
        ("LimitCPU=1ms", {"LimitCPU": 1, "LimitCPUSoft": 1}),
        ("LimitRTTIME=7", {"LimitRTTIME": 7, "LimitRTTIMESoft": 7}),
        ("LimitNICE=-20", {"LimitNICE": 40, "LimitNICESoft": 40}),
        ("EnvironmentFile=-/a", {"EnvironmentFiles": [["/a", True]]}),
        ("LoadCredential=a", {"LoadCredential": [["a", "a"]]}),
        ("ImportCredential=a.*:b.", {"ImportCredentialEx": [["a.*", "b."]]}),
        ("SetCredential=a:b\\x00:'c'", {"SetCredential": [["a", list(b"b\0:'c'")]]}),
        ("SetCredentialEncrypted=a:YWI=", {"SetCredentialEncrypted": [["a", list(b"ab")]]}),
        ("StandardInputText='a", {"StandardInputData": list(b"'a\n")}),
        ("StandardOutput=file:/a", {"StandardOutputFile": "/a"}),
        ("StandardOutput=journal", {"StandardOutput": "journal"}),
        ("AppArmorProfile=-x", {"AppArmorProfile": [True, "x"]}),
        ("CPUAffinity=numa", {"CPUAffinityFromNUMA": True}),
        ("UMask=027", {"UMask": 0o27}),
        ("Nice=-5", {"Nice": -5}),
        ("TimerSlackNSec=50", {"TimerSlackNSec": 50}),
        ("TimerSlackNSec=1ms", {"TimerSlackNSec": 1_000_000}),
        ("SyslogLevel=err", {"SyslogLevel": 3}),
        ("CoredumpFilter=default 0x100", {"CoredumpFilter": 0x133}),
        ("SuccessExitStatus=7 SIGKILL EXCEPTION", {"SuccessExitStatus": [[7, 255], [9]]}),
        ("ExecReload=-/bin/kill 'a b'", {"ExecReload": [["/bin/kill", ["/bin/kill", "a b"], True]]}),
        ("ExecReload=@/bin/kill k", {"ExecReload": [["/bin/kill", ["k"], False]]}),
        ("ExecReload=:/bin/sh -c 'kill $MAINPID'",
         {"ExecReloadEx": [["/bin/sh", ["/bin/sh", "-c", "kill $MAINPID"], ["no-env-expand"]]]}),
        ("ExecReload=@-:/bin/sh a $B",
         {"ExecReloadEx": [["/bin/sh", ["a", "$B"], ["no-env-expand", "ignore-failure"]]]}),
        ("ExecReload=", {"ExecReload": []}),
        ("OpenFile=/a/b", {"OpenFile": [["/a/b", "b", 0]]}),
        ("OpenFile=/a/b:c:append,graceful", {"OpenFile": [["/a/b", "c", 10]]}),
        ("RefreshOnReload=~extensions", {"RefreshOnReload": [[True, "extensions"]]}),
        ("ConditionPathExists=|!/a", {"Conditions": [["ConditionPathExists", True, True, "/a"]]}),
        ("AssertUser=", {"Asserts": []}),
        ("LogFilterPatterns=~a", {"LogFilterPatterns": [[False, "a"]]}),
    ],
)  # fmt: skip
def test_one_of_a_service(text: str, expected: dict[str, Any]) -> None:
    assert convert([text]) == expected


def test_values_of_a_file() -> None:
    assert convert_values({"ExecReload": ["/a", "-/b c"], "Environment": ["A=x y"], "NUMAMask": [1]}) == {
        "ExecReload": [["/a", ["/a"], False], ["/b", ["/b", "c"], True]],
        "Environment": ["A=x y"],
        "NUMAMask": [1],
    }
    as_over_dbus = {
        "RestartUSec": 5, "TimerSlackNSec": 5, "WhateverA": [[1, 2]], "DeviceAllow": [["/a", "r"]], "MemoryMax": 512
    }  # fmt: skip
    assert convert_values(as_over_dbus) == as_over_dbus
    assert convert_values(
        {"RestartSec": 1.5, "TimeoutStopSec": 5, "BindPaths": ["/a", "/b:/c:norbind"]}
    ) == {
        "RestartUSec": 1_500_000,
        "TimeoutStopUSec": 5_000_000,
        "BindPaths": [["/a", "/a", False, 16384], ["/b", "/c", False, 0]],
    }
    assert convert_values({"SystemCallFilter": ["@mount"], "ConditionPathExists": ["/a", "!/b"]}) == {
        "SystemCallFilter": ["@mount"],  # not a list, so the service refuses it
        "Conditions": [
            ["ConditionPathExists", False, False, "/a"],
            ["ConditionPathExists", False, True, "/b"],
        ],
    }


@pytest.mark.parametrize(
    "values", [{"RestartSec": True}, {"EnvironmentFile": [["/a", True]]}, {"Whatever": 1}]
)
def test_values_of_a_file_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        convert_values(values)


def test_without_names_only_the_irregular_are_converted() -> None:
    assert without_names({"CPUQuota": "50%", "NoNewPrivileges": "yes", "MemoryMx": "1G", "DeviceAllow": "[]"}) == {
        "CPUQuotaPerSecUSec": 500_000, "NoNewPrivileges": "yes", "MemoryMx": "1G", "DeviceAllow": "[]"
    }  # fmt: skip
    with pytest.raises(ValueError, match="CapabilityBoundingSet: there is no capability 'CAP_NONE'"):
        without_names({"CapabilityBoundingSet": "CAP_NONE"})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("MemoryMx", "MemoryMax"),
        ("memorymax", "MemoryMax"),
        ("CPUQuotas", "CPUQuota"),
        ("TimeoutStop", "TimeoutStopSec"),
        ("IPAddressDenied", "IPAddressDeny"),
        ("PrivateTemp", "PrivateTmp"),
        ("EnvironmentFiless", "EnvironmentFile"),
    ],
)
def test_the_nearest_names_are_told(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"no property {name}; did you mean .*\b{nearest}\b"):
        convert([f"{name}=1"])


def test_what_can_only_be_read_is_not_offered() -> None:
    with pytest.raises(ValueError, match="did you mean Restart") as refused:
        convert(["NRestart=5"])
    assert "NRestarts" not in str(refused.value)


def test_of_a_property_like_no_other_only_the_name_is_told() -> None:
    with pytest.raises(ValueError, match=r"^there is no property Xylophone$"):
        convert(["Xylophone=1"])


def test_what_only_services_have_is_no_property_of_a_scope() -> None:
    with pytest.raises(ValueError, match="no property EnvironmentFile"):
        convert(["EnvironmentFile=/a"], TYPES["scope"])


def test_a_word_that_an_older_systemd_has_no_property_for() -> None:
    older = {name: signature for name, signature in KNOWN.items() if name != "CPUAffinityFromNUMA"}
    with pytest.raises(ValueError, match="no property CPUAffinityFromNUMA, which 'numa' needs"):
        convert(["CPUAffinity=numa"], older)


def test_a_property_of_tomorrow_is_converted_by_its_type() -> None:
    tomorrow = {
        "MemoryNew": "t", "MemoryNewScale": "u", "PauseUSec": "t", "PauseSignal": "i", "FreshMode": "u",
        "FreshDirectory": "as", "FreshDirectorySymlink": "a(sst)", "ProtectNew": "b", "ProtectNewEx": "s",
        "NewPaths": "as", "IONewMax": "a(st)", "NewLatencyUSec": "a(st)", "AllowedNewNodes": "ay",
        "RestrictNew": "(bas)", "ExecNew": "a(sasb)", "LimitNEW": "t", "LimitNEWSoft": "t", "NewShare": "d",
        "NewOffset": "x",
    }  # fmt: skip
    assert convert(
        ["MemoryNew=50%", "PauseSec=1min", "PauseSignal=SIGHUP", "FreshMode=0750", "FreshDirectory=a b:c",
         "ProtectNew=strict", "NewPaths=/a /b", "IONewMax=/dev/vda 1M", "NewLatencySec=/dev/vda 25ms",
         "AllowedNewNodes=0-1", "RestrictNew=~a b", "ExecNew=-/bin/a b", "LimitNEW=1K:2K", "NewShare=0.5",
         "NewOffset=-5"],
        tomorrow,
    ) == {
        "MemoryNewScale": 2147483648, "PauseUSec": 60_000_000, "PauseSignal": 1, "FreshMode": 0o750,
        "FreshDirectory": ["a"], "FreshDirectorySymlink": [["b", "c", 0]], "ProtectNewEx": "strict",
        "NewPaths": ["/a", "/b"], "IONewMax": [["/dev/vda", 1_000_000]], "NewLatencyUSec": [["/dev/vda", 25_000]],
        "AllowedNewNodes": [3], "RestrictNew": [False, ["a", "b"]], "ExecNew": [["/bin/a", ["/bin/a", "b"], True]],
        "LimitNEW": 2048, "LimitNEWSoft": 1024, "NewShare": 0.5, "NewOffset": -5,
    }  # fmt: skip
    assert convert(["MemoryNew=1G", "ProtectNew=yes"], tomorrow) == {
        "MemoryNew": 1 << 30,
        "ProtectNew": True,
    }


def test_no_rule_is_dead() -> None:
    written = {*settings(KNOWN), *KNOWN}
    assert [name for name in TABLE if name not in written | {*ALIASES}] == []
    # What is written as the rules for types have it needs no row.
    regular = {name for name in TABLE if name in KNOWN and KNOWN[name] in {"b", "s"}}
    assert regular == {"Delegate", "StandardInput", "StandardOutput", "StandardError"}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("AllowedCPUs", [1], "AllowedCPUs=0"),
        ("StartupAllowedMemoryNodes", [15, 1], "StartupAllowedMemoryNodes=0-3 8"),
        ("CPUQuotaPerSecUSec", 500_000, "CPUQuota=50%"),
        ("CPUQuotaPeriodUSec", 50_000, "CPUQuotaPeriodSec=50ms"),
        ("MemoryMax", 1 << 30, "MemoryMax=1G"),
        ("MemoryMax", "infinity", "MemoryMax=infinity"),
        ("MemoryMaxScale", 1 << 31, "MemoryMaxScale=2147483648"),
        ("TasksMax", 16384, "TasksMax=16384"),
        ("SendSIGHUP", True, "SendSIGHUP=true"),
        ("RestrictAddressFamilies", [True, ["AF_UNIX"]], "RestrictAddressFamilies=AF_UNIX"),
        ("SystemCallFilter", [False, ["@mount", "ptrace"]], "SystemCallFilter=~@mount ptrace"),
        ("SystemCallArchitectures", ["native"], "SystemCallArchitectures=native"),
        ("IOWriteBandwidthMax", [["/dev/vda", 5]], 'IOWriteBandwidthMax=[["/dev/vda",5]]'),
    ],
)
def test_what_is_planned_is_written_as_it_is_set(name: str, value: Any, text: str) -> None:
    assert assignment(name, value) == text
    assert convert([text]) == {name: value}


def test_lists_are_joined_and_reset_and_other_values_replaced() -> None:
    assert convert(["After=a b", "After=c"]) == {"After": ["a", "b", "c"]}
    assert convert(["After=a b", "After=", "After=c"]) == {"After": ["c"]}
    assert convert(["DeviceAllow=/dev/a r", "DeviceAllow=/dev/b w"]) == {
        "DeviceAllow": [["/dev/a", "r"], ["/dev/b", "w"]]
    }
    assert convert(["AllowedCPUs=0", "AllowedCPUs=1"]) == {"AllowedCPUs": [2]}
    assert convert(["TasksMax=1", "TasksMax=2"]) == {"TasksMax": 2}
    assert list(convert(["MemoryMax=1", "MemoryMax=50%", "MemoryMax=2"])) == ["MemoryMaxScale", "MemoryMax"]


@pytest.mark.parametrize(
    "text",
    [
        "MemoryMax", "Memory Max=1", "MemoryMax=-1", "MemoryMax=1X", "MemoryMax=1M1G", "MemoryMax=9999E",
        "MemoryMax=[1", "TasksMax=1K", "TasksMax=18446744073709551616", "CPUQuota=0%", "CPUQuota=50",
        "CPUQuota=12.345%", "MemoryHigh=101%", "TasksMax=100.01%", "ManagedOOMMemoryPressureLimit=200%",
        "AllowedCPUs=3-0", "AllowedCPUs=9999", "TimeoutStopSec=", "TimeoutStopSec=5 apples",
        "TimeoutStopSec=-5s", "Delegate='", "KillSignal=SIGNONE", "SendSIGHUP=maybe", "IOReadBandwidthMax=/dev/vda",
        "IPAddressAllow=300.0.0.1", "BPFProgram=/sys/fs/bpf/x", "WhateverA=text", "WhateverA=NaN",
        "WhateverA=[Infinity]",
        "Odd=1",
        "NoNewPrivileges=maybe", "Environment='a", "Environment=a\\", "Environment=\\q", "Environment=\\xff",
        "Environment=\\ud800", "SystemCallErrorNumber=ENONE", "CapabilityBoundingSet=CAP_NONE",
        "AmbientCapabilities=63",
        "RestrictNamespaces=house", "BindPaths=/a:/b:ro", "BindPaths=:/b", "StateDirectory=a:b:rw", "LimitNOFILE=2:1",
        "LimitNOFILE=infinity:1", "LimitNOFILE=1K", "LimitNICE=-21", "SetCredential=a", "SetCredentialEncrypted=a:?",
        "StandardInputData=?", "UMask=8", "UMask=10000", "Nice=cold", "SyslogLevel=loud", "CoredumpFilter=much",
        "SuccessExitStatus=256", "SuccessExitStatus=SIGNONE", "ExecReload=+/bin/kill", "ExecReload=--/bin/kill",
        "ExecReload=::/bin/kill",
        "ExecReload=@/bin/kill", "OpenFile=/a:b:c", "ProtectHostname=private:", "NUMAMask=all", "MountImages=/a:/b",
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        convert([text])


@pytest.mark.parametrize("text", ["", "=1", "A.b=1"])
def test_what_is_no_assignment(text: str) -> None:
    with pytest.raises(ValueError, match="is not NAME=VALUE"):
        convert([text])


MARKS = st.text(alphabet="~-:@!|%\\'\" axKM019.,/=", max_size=20)


@given(
    st.sampled_from(sorted({*KNOWN, *settings(KNOWN), *TABLE, "ConditionPathExists", "Odd"})),
    st.one_of(st.text(), MARKS),
)
def test_any_text_is_converted_or_refused(name: str, text: str) -> None:
    try:
        converted = convert([f"{name}={text}"])
    except ValueError:
        return
    json.dumps(converted, ensure_ascii=False).encode()  # no surrogates, and nothing that is no JSON
