"""Names and records of io.systemd.Resolve.Hook."""

import base64
import json
import socket

import pytest
from made import machine

from moorage.api.resolve_hook import dns
from moorage.api.resolve_hook.names import Filter, Names
from moorage.machines.model import MachineClass
from moorage.machines.registry import Registry


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "web",
        "web.",
        "a.b.c",
        "x" * 63,
        ".".join(["x" * 49] * 5),
        "a b",
        "é",
        "é" * 31,
        "a\\.b",
        "\\065",
        "\\000",
    ],
)
def test_a_name(name: str) -> None:
    assert dns.is_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "..", ".web", "a..b", "x" * 64, ".".join(["x" * 63] * 4), "x." * 128, "é" * 32, "a\nb", "a\x7f", "\\", "a\\",
        "\\1", "\\999", "\\256", "a\\x", "\ud800", "y" * 9000, "a\0b",
    ],
)  # fmt: skip
def test_no_name(name: str) -> None:
    assert not dns.is_name(name)


@pytest.mark.parametrize(
    ("name", "parents"),
    [
        ("", []), (".", []), ("web", []), ("web.", []), ("a.web", ["web"]), ("b.a.web", ["a.web", "web"]),
        ("a\\.web", []), ("a\\.b.web", ["web"]), ("a.web.", ["web."]),
    ],
)  # fmt: skip
def test_what_a_name_is_a_part_of(name: str, parents: list[str]) -> None:
    assert list(dns.parents(name)) == parents


def test_a_record_is_that_of_the_standard() -> None:
    raw = base64.b64decode(dns.record("web.box", 1, socket.inet_aton("10.1.2.3")))
    assert raw == b"\x03web\x03box\0" + bytes((0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 1, 2, 3))
    # As systemd-machined 262 encodes it.
    assert dns.record("shifted", 1, bytes((10, 1, 2, 3))) == "B3NoaWZ0ZWQAAAEAAQAAAAAABAoBAgM="


def told(feed: Filter) -> list[list[str]]:
    messages = [json.loads(message[:-1]) for message in feed.take(1 << 16)]
    assert all(message["continues"] for message in messages)
    return [message["parameters"]["filterDomains"] for message in messages]


def test_users_have_no_domains() -> None:
    registry = Registry()
    for name, uid in (
        ("web", 0), ("web.example", 0), ("a_b", 0), ("mine", 1000), ("example.com", 1000), ("com", 1000),
    ):  # fmt: skip
        registry.add(machine(name, class_=MachineClass.container, registrant=uid))
    names = Names(registry)
    assert names.all().filterDomains == ["web", "web.example", "mine", "com"]
    assert [name for name in ("web", "a_b", "mine", "example.com", "com", "none") if names.find(name)] == [
        "web", "mine", "com",
    ]  # fmt: skip
    assert [name for name in ("web", "mine", "com", "none") if names.owns_below(name)] == ["web"]


def test_a_follower_is_told_the_latest() -> None:
    registry = Registry()
    web, db = machine("web"), machine("db")
    registry.add(web)
    names = Names(registry)
    woken: list[int] = []
    feed = names.follow()
    feed.follow(lambda: woken.append(1))
    assert told(feed) == [["web"]]
    assert told(feed) == []
    registry.add(db)
    names.added(db)
    feed.wake()
    assert woken == [1]
    assert told(feed) == [["web", "db"]]
    feed.wake()  # nothing has changed
    assert told(feed) == []
    feed.close()
