"""What a user sets on a scope only takes away from it, also once the manager has read it back from the unit's file."""

from typing import Any

import pytest
from authority import wait_for
from moored import OURS, UNTIL_SECONDS, control_group, run, scopes, show, state
from sessions import Session

from moorage.authz.allowed_properties import SCOPE, Choice, Range, Values

UNLIMITED = 2**64 - 1

LIVES = {"MemoryMax": 2**28 + 1, "MemoryHigh": 2**28 + 1, "RuntimeMaxUSec": 599_999_999}
"""Instead of the least, with which a machine ends at once: nothing could be read of it after a reload."""

BETWEEN = (12_345, 1_000_001, 59_999_999, 123_456_789, 2**33 + 12_345)
"""What a clock, a percentage or a page might round."""

SIGNALS = (2, 15, 19, 34, 63)

STUBBORN = ("sh", "-c", "trap '' TERM HUP INT; while :; do sleep 1; done")

OTHERS = ("KillMode", "SendSIGKILL", "Slice", "User", "TimeoutStopUSec", "TasksMax", "MemoryMin")
"""What must be the same as before, whatever is set besides."""

ROUNDED = 1.01
ROUNDED_MORE = 4096
"""How much more may have been asked for than is in force: a hundredth, and a page of memory or some ms."""


def values(name: str, allowed: Values) -> list[Any]:
    """The ends of what may be set, and some between."""
    match allowed:
        case Range():
            least = LIVES.get(name, allowed.least)
            between = SIGNALS if name == "KillSignal" else BETWEEN
            found = [least, *(value for value in between if least < value < allowed.most), allowed.most]
            return [*found, UNLIMITED] if allowed.unlimited else found
        case Choice():
            return list(allowed.values)
        case _:
            raise AssertionError(name)


def number(text: str) -> float:
    """Read what systemctl shows of a time, in µs, or of another number."""
    units = {"us": 1, "ms": 1e3, "s": 1e6, "min": 6e7, "h": 3.6e9, "d": 8.64e10, "w": 6.048e11,
             "month": 2.6298e12, "y": 3.15576e13}  # fmt: skip
    if text == "infinity":
        return UNLIMITED
    total = 0.0
    for word in text.split():
        digits = word.rstrip("abcdefghijklmnopqrstuvwxyz")
        total += float(digits) * units.get(word[len(digits) :], 1)
    return total


def test_what_may_be_set_takes_away_also_after_a_reload(nothing_left: None, creator: Session) -> None:
    # systemd 262 has no CPUAccounting any more: there it is always on.
    known = run(
        "busctl", "introspect", "org.freedesktop.systemd1", "/org/freedesktop/systemd1/unit/init_2escope"
    )
    asked = [
        (name, value)
        for name, allowed in SCOPE.items()
        if f".{name} " in known
        for value in values(name, allowed)
    ]
    machines = {f"m{index}": each for index, each in enumerate(asked)}
    leaders: dict[str, int] = {}
    try:
        for machine, (name, value) in machines.items():
            leaders[machine] = creator.spawn()
            reply = creator.register(machine, leaders[machine], properties={name: value})
            assert "error" not in reply, (name, value, reply)
        before = {machine: show(f"machine-{machine}.scope") for machine in machines}
        run("systemctl", "daemon-reload")
        for machine, (name, value) in machines.items():
            was, found = before[machine], show(f"machine-{machine}.scope")
            if was[name] != found[name]:  # rounded: to less, but not to nothing, and not to much less
                assert value != UNLIMITED, name
                assert 0 < number(found[name]) < number(was[name]), (name, value, was[name], found[name])
                assert number(was[name]) <= ROUNDED * number(found[name]) + ROUNDED_MORE, (name, value)
            for other in set(OTHERS) - {name}:
                assert was.get(other) == found.get(other), (name, value, other)
            assert control_group(leaders[machine]) == f"/machine.slice/machine-{machine}.scope"
    finally:
        for leader in leaders.values():
            creator.kill(leader)


@pytest.mark.parametrize("usec", [1, 12_345, 1_000_001])
def test_a_machine_ends_when_its_time_is_over(nothing_left: None, creator: Session, usec: int) -> None:
    leader = creator.spawn()
    reply = creator.register("web", leader, properties={"RuntimeMaxUSec": usec})
    # The shortest may be over before the call is.
    assert reply.get("error") in {None, f"{OURS}ProcessGone", f"{OURS}JobFailed"}, reply
    wait_for(lambda: scopes() == [], "the end of the machine")
    creator.kill(leader)


@pytest.mark.parametrize("usec", [1, 1000, 1_000_000])
def test_a_stop_ends_whatever_the_machine_does(nothing_left: None, creator: Session, usec: int) -> None:
    # With TimeoutStopUSec=0, which is no limit after a reload, and KillMode=none a name was taken for ever.
    leader = creator.spawn(*STUBBORN)
    properties = {"TimeoutStopUSec": usec, "KillSignal": 18, "SendSIGHUP": False}
    assert "error" not in creator.register("web", leader, properties=properties)
    run("systemctl", "daemon-reload")
    stopped = creator.call("Stop", {"name": "web", "timeoutUSec": int(UNTIL_SECONDS * 1e6)})
    assert stopped["parameters"]["machine"]["verdict"]["result"] == "timeout", stopped
    creator.kill(leader)


NO_LIMITS: list[tuple[str, Any]] = [
    ("TimeoutStopUSec", 0), ("TimeoutStopUSec", 90_000_001), ("TimeoutStopUSec", UNLIMITED),
    ("CPUQuotaPerSecUSec", 1), ("CPUQuotaPerSecUSec", 9_999), ("CPUQuotaPerSecUSec", 2**63),
    ("RuntimeMaxUSec", 0), ("RuntimeMaxUSec", UNLIMITED - 1), ("CPUWeight", 101), ("IOWeight", 0),
    ("IOWeight", 10_000), ("TasksMax", 0), ("TasksMax", 16_385), ("TasksMax", UNLIMITED), ("KillSignal", 0),
    ("KillSignal", 65), ("MemoryMax", 0), ("MemoryMax", -1), ("OOMPolicy", "stop\nUser=root"),
    ("IPAccounting", False), ("Delegate", 1), ("Delegate", ["cpu"]), ("KillMode", "none"),
]  # fmt: skip


def test_what_would_be_no_limit_is_refused(nothing_left: None, creator: Session) -> None:
    leader = creator.spawn()
    before = control_group(leader)
    for name, value in NO_LIMITS:
        reply = creator.register("web", leader, properties={name: value})
        assert (reply["error"], reply["parameters"]["property"]) == (f"{OURS}InvalidProperty", name), value
    assert (state("machine-web.scope"), control_group(leader)) == ("inactive", before)
    creator.kill(leader)


def test_a_description_remains_what_it_is(nothing_left: None, creator: Session) -> None:
    # What no unit file can hold is refused: test_unit_files.py.
    texts = ["%n", "%%", "[Scope]", "#", ";", "a  b", "\\a", '"', "$HOME", "User=root", "ü"]
    shown = ("Description", "Slice", "TasksMax", "Documentation", "KillMode", "Delegate")
    machines = {f"m{index}": text for index, text in enumerate(texts)}
    leaders = [creator.spawn() for _ in machines]
    for (machine, text), leader in zip(machines.items(), leaders, strict=True):
        assert "error" not in creator.register(machine, leader, description=text)
    before = {machine: show(f"machine-{machine}.scope", *shown) for machine in machines}
    assert {machine: found["Description"] for machine, found in before.items()} == machines
    run("systemctl", "daemon-reload")
    assert {machine: show(f"machine-{machine}.scope", *shown) for machine in machines} == before
    for leader in leaders:
        creator.kill(leader)
