"""What is shown of replies that the battery does not see: ends, helpers, counters, and text that means harm."""

import json
from typing import Any

import msgspec
import pytest

from moorage.cli import details, views
from moorage.cli.failures import Exit, Failure

MACHINE: dict[str, Any] = {
    "name": "web", "class": "vm", "phase": "running", "freezer": "running", "uid": 0, "unit": "machine-web.scope",
    "slice": "machine.slice", "controlGroup": "/machine.slice/machine-web.scope", "controlGroupId": 7,
    "invocationId": "a" * 32, "timestamp": {"realtime": 1_700_000_000_000_000}, "ifIndices": [], "helpers": [],
    "fieldOfALaterVersion": {"x": 1},
}  # fmt: skip


def raw(reply: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(reply).encode())


def status(
    capsys: pytest.CaptureFixture[str],
    machine: dict[str, Any],
    accounting: dict[str, int] | None = None,
    limits: dict[str, Any] | None = None,
    **further: Any,
) -> list[str]:
    reply = {"machine": MACHINE | machine, "accounting": accounting or {}, "limits": limits or {}, **further}
    details.show_status(raw(reply))
    return [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = {
        "result": "oom-kill", "exitedAt": {"realtime": 1_800_000_000_000_000}, "oomKilled": True, "accounting": {},
        "cause": "oomKilled", "leaderSignal": 9,
    }  # fmt: skip
    lines = status(capsys, {"phase": "exited", "verdict": verdict})
    since = next(line for line in lines if line.startswith("Phase: exited (oom-kill) since "))
    assert "2027" in since
    assert "2023" in next(line for line in lines if line.startswith("Registered: "))
    assert "Ended: it was killed for lack of memory, leader ended by SIGKILL, result oom-kill" in lines


def option(name: str, **values: str) -> dict[str, str]:
    return {"name": name, "value": "5", "default": "7", "inAnotherVersion": "x", **values}


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ([option("a"), option("longer", value="10min")], ["OPTION  VALUE", "a       5", "longer  10min"]),
        ([option("a", source="default")], ["OPTION  VALUE  SOURCE", "a       5      default"]),
        (
            [
                option("a", source="/etc/a:1"),
                option("b", source="default", afterRestart="6", afterRestartSource="/etc/a:2"),
            ],
            [
                "OPTION  VALUE  SOURCE    AFTER RESTART",
                "a       5      /etc/a:1",
                "b       5      default   6 (/etc/a:2)",
            ],
        ),
        ([option("a", afterRestart="6")], ["OPTION  VALUE  AFTER RESTART", "a       5      6"]),
        (
            [option("a", source="/etc/\x1b[1m:1")],
            ["OPTION  VALUE  SOURCE", "a       5      /etc/\\x1b[1m:1"],
        ),
    ],
)
def test_a_configuration(
    capsys: pytest.CaptureFixture[str], options: list[dict[str, str]], lines: list[str]
) -> None:
    views.show_configuration(raw({"options": options, "problems": ["/etc/a:3: wrong\x1b[1m"]}))
    shown = capsys.readouterr()
    assert shown.out.splitlines() == lines
    assert shown.err == "Warning: /etc/a:3: wrong\\x1b[1m\n"


def test_an_end_of_which_little_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    lines = status(
        capsys, {"phase": "exited", "verdict": {"result": "success", "exitedAt": {}, "accounting": {}}}
    )
    assert "Phase: exited (success) since unknown" in lines
    assert "Ended: result success" in lines


def test_an_end_by_a_helper(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = {
        "result": "success", "exitedAt": {}, "accounting": {}, "cause": "helperEnded", "helper": "fs",
        "helperResult": "signal", "log": ["one", "two\x1b"], "leaderStatus": 1,
    }  # fmt: skip
    lines = status(capsys, {"phase": "exited", "verdict": verdict})
    words = "its helper fs ended with result signal: two\\x1b, leader ended with status 1, result success"
    assert f"Ended: {words}" in lines
    assert [line for line in lines if line.startswith("Log: ")] == ["Log: one", "Log: two\\x1b"]


def test_a_frozen_machine_with_a_helper(capsys: pytest.CaptureFixture[str]) -> None:
    helper = {
        "name": "fs", "unit": "web-fs.service", "activeState": "active", "subState": "running", "sockets": []
    }  # fmt: skip
    lines = status(capsys, {"freezer": "frozen", "helpers": [helper]})
    assert any(line.startswith("Phase: running (frozen) since ") for line in lines)
    assert "Helper: fs: web-fs.service, active (running)" in lines
    failed = {**helper, "activeState": "failed", "subState": "failed", "result": "signal"}
    assert "Helper: fs: web-fs.service, failed (Result: signal)" in status(capsys, {"helpers": [failed]})


def test_counters(capsys: pytest.CaptureFixture[str]) -> None:
    lines = status(
        capsys,
        {},
        {
            "cpuUsageNSec": 61_000_000_000, "memoryCurrent": 1 << 30, "memoryPeak": 3 << 29, "tasksCurrent": 4,
            "ioReadBytes": 2048, "ipIngressBytes": 5, "ipEgressBytes": 6, "oomKills": 2,
        },
    )  # fmt: skip
    for line in (
        "CPU: 1min 1s", "Memory: 1.0G (peak 1.5G)", "Tasks: 4", "IO: 2.0K read", "IP: 5B in, 6B out",
        "OOM kills: 2 by the kernel, 0 by systemd-oomd",
    ):  # fmt: skip
        assert line in lines


def test_limits(capsys: pytest.CaptureFixture[str]) -> None:
    lines = status(
        capsys,
        {},
        limits={
            "CPUQuotaPerSecUSec": 1_500_000, "TimeoutStopUSec": 90_000_000, "MemoryMax": 1 << 20, "TasksMax": None,
            "EffectiveMemoryHigh": 3 << 29,
            "MemoryHigh": 2**64 - 1, "Delegate": True, "AllowedCPUs": [15, 2], "AllowedMemoryNodes": [],
            "DelegateControllers": ["cpu", "io"], "KillMode": "mixed", "IODeviceWeight": [["/dev/vda", 5]],
        },
    )  # fmt: skip
    assert lines[-11:] == [
        "CPUQuota: 150%", "TimeoutStopSec: 1min 30s", "MemoryMax: 1.0M", "TasksMax: infinity",
        "EffectiveMemoryHigh: 1.5G",
        "MemoryHigh: infinity", "Delegate: yes", "AllowedCPUs: 0-3 9", "DelegateControllers: cpu io",
        "KillMode: mixed", 'IODeviceWeight: /dev/vda 5',
    ]  # fmt: skip


def test_the_peaks_of_what_has_ended_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = {"result": "oom-kill", "exitedAt": {}, "accounting": {}}
    lines = status(
        capsys,
        {"phase": "exited", "verdict": verdict},
        {"memoryPeak": 30 << 20, "memorySwapPeak": 0, "tasksPeak": 3},
    )
    for line in ("Memory: peak 30.0M", "Swap: peak 0B", "Tasks: peak 3"):
        assert line in lines


def test_use_is_shown_beside_what_is_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    used = {"memoryCurrent": 96 << 20, "memoryPeak": 128 << 20, "memorySwapCurrent": 0, "tasksCurrent": 5}
    lines = status(capsys, {}, used, effective={"MemoryMax": 128 << 20, "MemorySwapMax": 0, "TasksMax": 20})
    for line in ("Memory: 96.0M of 128.0M, 75% (peak 128.0M)", "Swap: 0B", "Tasks: 5 of 20, 25%"):
        assert line in lines


def test_what_differs_from_the_limits_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = status(
        capsys,
        {},
        limits={"MemoryMax": 1 << 30, "TasksMax": 99, "CPUWeight": 200, "DevicePolicy": "strict", "MemoryLow": 0,
                "AllowedCPUs": [3], "KillMode": "mixed", "IOReadBandwidthMax": []},
        effective={"MemoryMax": 1 << 20, "MemoryHigh": 1 << 20, "TasksMax": 99, "DevicePolicy": "auto",
                   "AllowedCPUs": [1], "CPUQuotaPerSecUSec": 500_000, "IOReadBandwidthMax": [["/dev/vda", 5]],
                   "IOWeight": 100},
        devices=["/dev/null rwm", "char-pts rw\x1b"],
    )  # fmt: skip
    assert lines[lines.index("MemoryMax: 1.0G (in force: 1.0M)") :] == [
        "MemoryMax: 1.0G (in force: 1.0M)", "TasksMax: 99", "CPUWeight: 200 (not seen in force)",
        "DevicePolicy: strict (in force: auto)", "MemoryLow: 0B", "AllowedCPUs: 0-1 (in force: 0)", "KillMode: mixed",
        "CPUQuota: not set (in force: 50%)", 'IOReadBandwidthMax: not set (in force: /dev/vda 5)',
        r"Devices: /dev/null rwm, char-pts rw\x1b",
    ]  # fmt: skip


def test_limits_are_shown_in_the_words_that_set_them(capsys: pytest.CaptureFixture[str]) -> None:
    limits = {
        "CPUWeight": 0, "StartupCPUWeight": 0, "IODeviceLatencyTargetUSec": [["/dev/vda", 25000]],
        "IOReadBandwidthMax": [["/dev/vda", 5_000_000], ["/dev/vdb", 7]], "IOReadIOPSMax": [["/dev/vda", None]],
        "IPAddressDeny": [[2, [127, 0, 0, 2], 32], [10, [0] * 16, 0]], "IPAddressAllow": [[2, [300], 1]],
    }  # fmt: skip
    assert status(capsys, {}, limits=limits, effective={})[-7:] == [
        "CPUWeight: idle (not seen in force)", "StartupCPUWeight: idle",
        "IODeviceLatencyTargetSec: /dev/vda 25ms (not seen in force)",
        "IOReadBandwidthMax: /dev/vda 5M, /dev/vdb 7 (not seen in force)",
        "IOReadIOPSMax: /dev/vda infinity (not seen in force)",
        "IPAddressDeny: 127.0.0.2/32 ::/0", "IPAddressAllow: [[2,[300],1]]",
    ]  # fmt: skip


def test_differences_are_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    differences = [
        {"property": "MemoryMax", "wanted": "5000", "effective": "4096", "reason": "rounded"},
        {"property": "CPUWeight", "wanted": "7", "reason": "no controller\x1b[2J", "helper": "fs"},
        {"property": "CPUQuotaPerSecUSec", "wanted": "500000", "effective": "100000", "reason": "undercut"},
        {"property": "CPUQuotaPeriodUSec", "wanted": "50000", "reason": "no quota"},
        {"property": "MemoryMaxScale", "wanted": "50%", "effective": "33554432", "reason": "undercut"},
        {"property": "StartupMemoryHigh", "wanted": "67108865", "effective": "infinity", "reason": "later"},
        {"property": "IOReadBandwidthMax", "wanted": "/dev/vda 5000000", "reason": "none"},
        {"property": "IODeviceLatencyTargetUSec", "wanted": "/dev/vda 25000", "reason": "none"},
        {"property": "AllowedCPUs", "wanted": "0-3", "effective": "0-1", "reason": "gone"},
        {"property": "TasksMax", "wanted": "2048", "effective": "64", "reason": "undercut"},
    ]
    views.show_registered(raw({"machine": MACHINE, "differences": differences}))
    captured = capsys.readouterr()
    assert captured.out == "machine-web.scope\n"
    assert captured.err.splitlines() == [
        "Warning: MemoryMax=5000 is in force as 4K: rounded",
        r"Warning: helper fs: CPUWeight=7 has no effect: no controller\x1b[2J",
        "Warning: CPUQuota=50% is in force as 10%: undercut",
        "Warning: CPUQuotaPeriodSec=50ms has no effect: no quota",
        "Warning: MemoryMax=50% is in force as 32M: undercut",
        "Warning: StartupMemoryHigh=67108865 is in force as infinity: later",
        "Warning: IOReadBandwidthMax=/dev/vda 5M has no effect: none",
        "Warning: IODeviceLatencyTargetSec=/dev/vda 25ms has no effect: none",
        "Warning: AllowedCPUs=0-3 is in force as 0-1: gone",
        "Warning: TasksMax=2048 is in force as 64: undercut",
    ]


def test_text_of_others_does_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    harm = {"service": "\x1b]0;owned\x07", "sshAddress": "a\nb\u202e"}
    lines = status(capsys, harm)
    assert r"Service: \x1b]0;owned\x07" in lines
    assert r"SSH address: a\nb\u202e" in lines
    views.show_list([raw({"machine": MACHINE | harm})], legend=False)
    [line] = capsys.readouterr().out.splitlines()
    assert line == r"web  vm  running  \x1b]0;owned\x07  machine-web.scope  -  0  -  a\nb\u202e"


def test_json_is_one_line_and_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    reply = msgspec.Raw(json.dumps({"machine": MACHINE}, indent=2).encode())
    views.show_json(reply)
    views.show_machine_json(reply)
    whole, machine = capsys.readouterr().out.splitlines()
    assert json.loads(whole) == {"machine": MACHINE}
    assert json.loads(machine) == MACHINE


def test_json_of_others_does_not_control_the_terminal_either(capsys: pytest.CaptureFixture[str]) -> None:
    text = "ä\x7f\x9b31m\u202e\u2028\U000e0001\U0001f600"
    views.show_json(msgspec.Raw(msgspec.json.encode({"service": text})))
    printed = capsys.readouterr().out
    assert printed == '{"service":"ä\\u007f\\u009b31m\\u202e\\u2028\\udb40\\udc01\U0001f600"}\n'
    assert json.loads(printed) == {"service": text}


@pytest.mark.parametrize("reply", [b"{}", b'{"machine": 1}', b'{"machine": {"name": "\xff"}}', b"[" * 9999])
def test_a_reply_that_is_not_understood(reply: bytes) -> None:
    with pytest.raises(Failure, match="makes no sense") as caught:
        views.show_name(msgspec.Raw(reply))
    assert caught.value.status == Exit.NO_SERVICE
