"""The link against peers that misbehave, on real sockets. The other ones are a bus and PID 1, in the sandboxes."""

import array
import errno
import gc
import os
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from dbus_peer import Peer, accepted, message
from descriptors import open_descriptors
from hypothesis import given, settings
from hypothesis import strategies as st
from jeepney.low_level import Endianness, HeaderFields, MessageType

from moorage.dbus import bus as dbus
from moorage.dbus.bus import BadCall, BadReply, Bus, BusClosed, CallFailed, CallTimeout, Crowded
from moorage.dbus.message import BusCall, BusSignal, parse

PING = BusCall("org.example", "/org/example", "org.example.Test", "Ping")
ECHO = BusCall("org.example", "/org/example", "org.example.Test", "Echo", "s", ("text",), "s")


def soon() -> float:
    return trio.current_time() + 20


def reply(to: int, text: str | None = None, endianness: Endianness = Endianness.little) -> bytes:
    body = ((), "") if text is None else ((text,), "s")
    return message(MessageType.method_return, 7, *body, endianness=endianness, reply_serial=to)


def signal(number: int) -> bytes:
    return message(
        MessageType.signal,
        number + 1,
        (number,),
        "u",
        path="/a",
        interface="org.example.Test",
        member="Tick",
    )


@asynccontextmanager
async def linked(
    signals: list[BusSignal] | None = None, closed: list[str] | None = None, calls_max: int = 100
) -> AsyncGenerator[tuple[Bus, Peer]]:
    """A running link and its peer; afterwards nothing is pending and no descriptor is left."""
    gc.disable()  # what it would close is an earlier test's
    try:
        before = open_descriptors(collect=False)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        reasons: list[str] = [] if closed is None else closed
        link = Bus(ours, ([] if signals is None else signals).append, reasons.append, calls_max)
        with theirs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.run)
                yield link, Peer(theirs)
                nursery.cancel_scope.cancel()
        assert link.closed
        assert len(reasons) == 1
        assert not link._pending
        assert not link._outgoing
        assert link._places.free == calls_max
        assert open_descriptors(collect=False) == before
    finally:
        gc.enable()


async def closed(link: Bus) -> str:
    """Wait until a link is down; why it is."""
    await link._closed.wait()
    return link._reason


# Authentication


@pytest.mark.parametrize(
    "answers",
    [
        [b""],
        [b"OK 0123\r\n", b""],
        [b"OK 01", b""],
        [b"REJECTED EXTERNAL\r\n"],
        [b"ERROR\r\n"],
        [b"nonsense\r\n"],
        [b"\r\n"],
        [b"\0" * 100],
        [b"x" * 20_000],
        [b"OK 0123\r\n", b"ERROR no descriptors\r\n"],
        [b"OK 0123\r\nAGREE_UNIX_FD\r\nwelcome"],
    ],
)
async def test_authentication_that_fails(tmp_path: Path, answers: list[bytes]) -> None:
    before = open_descriptors()
    path = f"{tmp_path}/socket"
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(path)
    listener.listen()

    async def serve() -> None:
        sock, _ = await listener.accept()
        with sock:
            assert await sock.recv(4096)
            for answer in answers:
                if answer:
                    await sock.send(answer)
            if answers[-1]:
                # What else it wants to hear, it does not get: it has to give up by itself.
                with suppress(ConnectionResetError):
                    while await sock.recv(4096):
                        pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(BusClosed) as caught:
            await Bus.connect(path, print, print, deadline=trio.current_time() + 0.5)
        assert not caught.value.sent
        assert path in caught.value.reason
    listener.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("each", [1, None])
async def test_nothing_is_read_together_with_the_end_of_the_authentication(
    tmp_path: Path, each: int | None
) -> None:
    """PID 1 looks at no message that it has read together with BEGIN before it reads another one."""
    path = f"{tmp_path}/socket"
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(path)
    listener.listen()

    async def serve() -> None:
        async with accepted(listener, each=each) as peer:
            assert (await peer.receive()).header.fields[HeaderFields.member] == "Ping"
            await peer.send(reply(1))

    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with trio.fail_after(20):
                bus = await Bus.connect(path, print, lambda _reason: None, deadline=soon())
                nursery.start_soon(bus.run)
                await bus.call(PING, deadline=soon())
            bus.close("the end")


def test_a_peer_that_never_answers_the_authentication(tmp_path: Path) -> None:
    async def main() -> None:
        path = f"{tmp_path}/socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            with pytest.raises(BusClosed, match="in time"):
                await Bus.connect(path, print, print, deadline=trio.current_time() + 3)
            assert trio.current_time() >= 3

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_nobody_listens(tmp_path: Path) -> None:
    for path in (f"{tmp_path}/nothing", "/proc/self/status", "@moorage-no-such-socket", "x" * 200):
        with pytest.raises(BusClosed):
            await Bus.connect(path, print, print, deadline=soon())


# Calls and replies


async def test_replies_in_any_order_and_size_of_pieces() -> None:
    for each in (1, 7, 1000, None):
        for endianness in Endianness:
            async with linked() as (link, peer), trio.open_nursery() as nursery:
                replies: dict[str, object] = {}

                async def call(link: Bus, text: str, replies: dict[str, object]) -> None:
                    (replies[text],) = await link.call(ECHO._replace(body=(text,)), deadline=soon())

                for number in range(20):
                    nursery.start_soon(call, link, f"text{number}", replies)
                received = [await peer.receive() for _ in range(20)]
                await peer.send(
                    b"".join(
                        reply(each.header.serial, each.body[0], endianness) + signal(1)
                        for each in reversed(received)
                    ),
                    each=each,
                )
            assert replies == {f"text{number}": f"text{number}" for number in range(20)}


async def one_call(call: BusCall, *answers: bytes, hang_up: bool = False) -> tuple[object, ...]:
    """Make one call, whose serial is 1, and have the peer send these answers."""
    result: tuple[object, ...] = ()
    async with linked() as (link, peer):
        failure: Exception | None = None

        async def serve() -> None:
            await peer.receive()
            for answer in answers:
                await peer.send(answer)
            if hang_up:
                peer.sock.shutdown(socket.SHUT_RDWR)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                result = await link.call(call, deadline=soon())
            except dbus.BusError as exc:
                failure = exc
    if failure is not None:
        raise failure
    return result


async def test_a_call_as_it_is_sent() -> None:
    async with linked() as (link, peer), trio.open_nursery() as nursery:

        async def look() -> None:
            received = await peer.receive()
            assert received.header.fields == {
                HeaderFields.path: "/org/example",
                HeaderFields.interface: "org.example.Test",
                HeaderFields.member: "Echo",
                HeaderFields.destination: "org.example",
                HeaderFields.signature: "s",
            }
            assert received.body == ("text",)
            assert received.header.serial == 1
            assert received.header.flags == 4
            link.close("enough")

        nursery.start_soon(look)
        failure = await failure_of(link, ECHO._replace(interactive=True))
        assert isinstance(failure, BusClosed)
        assert failure.sent


async def failure_of(link: Bus, call: BusCall, deadline: float | None = None) -> dbus.BusError:
    with pytest.raises(dbus.BusError) as caught:
        await link.call(call, deadline=soon() if deadline is None else deadline)
    return caught.value


async def test_good_replies() -> None:
    assert await one_call(PING, reply(1)) == ()
    assert await one_call(ECHO, reply(1, "ü")) == ("ü",)
    # Replies to others, a reply too many, and a header field of a later version of the protocol.
    assert await one_call(ECHO, reply(2, "b"), reply(0xFFFF_FFFF, "c"), reply(1, "a"), reply(1, "d")) == (
        "a",
    )
    for code, value in ((10, b"\1s\0\1\0\0\0x\0"), (200, b"\2ay\0\0\0\0\2\0\0\0xy"), (255, b"\1y\0\7")):
        fields = struct.pack("<BB", 5, 1) + b"u\0" + struct.pack("<I", 1) + struct.pack("<B", code) + value
        data = (
            struct.pack("<BBBBIII", ord("l"), 2, 0, 1, 0, 9, len(fields))
            + fields
            + b"\0" * (-len(fields) % 8)
        )
        assert await one_call(PING, data) == ()


async def test_error_replies() -> None:
    for body, signature, text in ((("why",), "s", "why"), ((), "", ""), ((5, "x"), "us", "")):
        data = message(
            MessageType.error, 3, body, signature, reply_serial=1, error_name="org.example.Error.No"
        )
        with pytest.raises(CallFailed) as caught:
            await one_call(ECHO, data)
        assert (caught.value.name, caught.value.text) == ("org.example.Error.No", text)


async def test_the_reader_tells_of_a_success_before_its_caller_goes_on() -> None:
    told: list[str] = []
    call = ECHO._replace(returned=lambda: told.append("returned"))
    async with linked() as (link, peer), trio.open_nursery() as nursery:

        async def make() -> None:
            told.append((await link.call(call, deadline=soon()))[0])

        nursery.start_soon(make)
        await peer.receive()
        await peer.send(reply(1, "a"))
    assert told == ["returned", "a"]
    with pytest.raises(CallFailed):
        await one_call(
            call, message(MessageType.error, 3, reply_serial=1, error_name="org.example.Error.No")
        )
    assert told == ["returned", "a"]


async def test_replies_of_another_type() -> None:
    for data in (
        reply(1),
        message(MessageType.method_return, 3, (5,), "u", reply_serial=1),
        message(MessageType.method_return, 3, ("a", "b"), "ss", reply_serial=1),
        # The length of the string, and its UTF-8.
        reply(1, "aaaa").replace(b"\4\0\0\0aaaa", b"\xff\0\0\0aaaa"),
        reply(1, "aaaa").replace(b"aaaa", b"\xff\xfeaa"),
    ):
        with pytest.raises(BadReply):
            await one_call(ECHO, data)


async def test_what_is_no_dbus_closes_the_link() -> None:
    good = reply(1, "aaaa")
    for data in (
        b"\0" * 16,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        good.replace(b"l\2\0\1", b"l\2\0\2", 1),
        good.replace(b"l\2\0\1", b"l\0\0\1", 1),
        good[:8] + b"\0\0\0\0" + good[12:],
        good[:4] + b"\xff\xff\xff\x7f" + good[8:],
        good[:12] + b"\xff\xff\xff\xff" + good[16:],
        good[:12] + b"\1\0\0\0" + good[16:],
        good[:16] + b"\5\1z\0" + good[20:],
        good[:16] + b"\5\4a(v)\0" + good[22:],
        good[:16] + b"\5\3a()\0" + good[21:],
    ):
        with pytest.raises(BusClosed) as caught:
            await one_call(ECHO, data, hang_up=False)
        assert caught.value.sent
        assert "protocol violation" in caught.value.reason


async def test_the_end_in_the_middle() -> None:
    good = reply(1, "aaaa")
    for length in (0, 1, 15, 16, 30, len(good) - 1):
        with pytest.raises(BusClosed) as caught:
            await one_call(ECHO, good[:length], hang_up=True)
        assert caught.value.sent
    assert await one_call(ECHO, good, hang_up=True) == ("aaaa",)


async def test_messages_of_unknown_types_are_ignored() -> None:
    unknown = b"l\x05" + signal(1)[2:]
    assert await one_call(ECHO, unknown, b"l\xff" + signal(1)[2:], reply(1, "a")) == ("a",)


async def test_calls_after_the_end() -> None:
    reasons: list[str] = []
    async with linked(closed=reasons) as (link, peer):
        peer.sock.close()
        assert await closed(link) == "closed by the peer"
        failure = await failure_of(link, PING)
        assert isinstance(failure, BusClosed)
        assert not failure.sent
    assert reasons == ["closed by the peer"]


async def test_a_deadline() -> None:
    async with linked() as (link, peer):
        assert isinstance(await failure_of(link, PING, trio.current_time() - 1), CallTimeout)
        assert isinstance(await failure_of(link, PING, trio.current_time() + 0.01), CallTimeout)
        # The first was not sent at all; the reply to the second is for nobody.
        received = await peer.receive()
        await peer.send(reply(received.header.serial))
        await still_works(link, peer)


async def test_arguments_that_do_not_fit() -> None:
    async with linked() as (link, peer):
        for call in (
            ECHO._replace(body=(5,)),
            ECHO._replace(body=()),
            ECHO._replace(body=("a", "b")),
            ECHO._replace(signature="u", body=(-1,)),
            ECHO._replace(signature="u", body=(2**32,)),
            ECHO._replace(signature="a", body=([],)),
            ECHO._replace(signature="o", body=("not a path",)),
            ECHO._replace(body=("\ud800",)),
        ):
            assert isinstance(await failure_of(link, call), BadCall)
        await still_works(link, peer)


async def still_works(link: Bus, peer: Peer) -> None:
    async def serve() -> None:
        received = await peer.receive()
        await peer.send(reply(received.header.serial, received.body[0]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        assert await link.call(ECHO, deadline=soon()) == ("text",)


# Signals


async def test_no_signal_is_lost() -> None:
    signals: list[BusSignal] = []
    async with linked(signals) as (link, peer):
        for start in range(0, 10_000, 500):
            await peer.send(b"".join(signal(number) for number in range(start, start + 500)), each=9_973)
        await still_works(link, peer)
        assert [each.body("u") for each in signals] == [(number,) for number in range(10_000)]
    assert {(each.path, each.interface, each.member, each.sender) for each in signals} == {
        ("/a", "org.example.Test", "Tick", "")
    }
    assert signals[0].body("s") is None


def test_what_a_change_says() -> None:
    def change(interface: str, values: dict[str, tuple[str, object]]) -> BusSignal:
        data = message(
            MessageType.signal,
            5,
            (interface, values, ["Later"]),
            "sa{sv}as",
            path="/a",
            interface="org.freedesktop.DBus.Properties",
            member="PropertiesChanged",
        )
        return BusSignal(parse(data))

    values: dict[str, tuple[str, object]] = {
        "Job": ("(uo)", (5, "/a")),
        "A": ("s", "ActiveState"),
        "B": ("u", 1),
    }
    for state in ("active", "x", "", "deactivating"):
        for position in range(4):
            items = list(values.items())
            items.insert(position, ("ActiveState", ("s", state)))
            changed = change("org.example.Unit", dict(items))
            assert changed.is_change_of("org.example.Unit")
            assert changed.changed("ActiveState", "s") == state.encode()
            items.insert(position, ("InvocationID", ("ay", bytes(range(16)))))
            assert change("org.example.Unit", dict(items)).changed("InvocationID", "ay") == bytes(range(16))
            items.insert(position, ("Timestamp", ("t", 1 << 63)))
            assert change("org.example.Unit", dict(items)).changed_number("Timestamp", "t") == 1 << 63
            assert change("org.example.Unit", dict(items)).changed_number("B") == 1
    assert change("org.example.Unit", values).changed("ActiveState", "s") is None
    assert change("org.example.Unit", {}).changed("ActiveState", "s") is None
    assert not change("org.example.Units", values).is_change_of("org.example.Unit")
    assert not BusSignal(parse(signal(1))).is_change_of("org.example.Unit")


# Descriptors


async def test_descriptors_are_sent_with_their_message_only() -> None:
    async with linked() as (link, peer), trio.open_nursery() as nursery:
        numbers = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]

        async def call(fd: int) -> None:
            await link.calls([PING, PING._replace(signature="sh", body=("x", fd)), PING], deadline=soon())

        for fd in numbers:
            nursery.start_soon(call, fd)
        for _ in numbers:
            for has_one in (False, True, False):
                received = await peer.receive()
                assert (HeaderFields.unix_fds in received.header.fields) == has_one
                if has_one:
                    os.close(received.body[1])
                await peer.send(reply(received.header.serial))
        assert peer.fds == []
        for fd in numbers:
            os.close(fd)


async def test_descriptors_that_cannot_be_sent() -> None:
    async with linked() as (link, peer):
        for fd in (1_000_000, 2**31 - 1, -1):
            failure = await failure_of(link, PING._replace(signature="h", body=(fd,)))
            assert isinstance(failure, BadCall)
        await still_works(link, peer)


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> list[OSError]:
    """Errors with which the kernel refuses the next messages with descriptors, last one first."""
    errors: list[OSError] = []
    sendmsg = socket.socket.sendmsg

    def refusing(self: socket.socket, *arguments: Any) -> int:
        if errors:
            raise errors.pop()
        return sendmsg(self, *arguments)

    monkeypatch.setattr(socket.socket, "sendmsg", refusing)
    return errors


async def test_descriptors_are_sent_when_there_are_fewer_on_their_way(crowded: list[OSError]) -> None:
    async with linked() as (link, peer), trio.open_nursery() as nursery:
        crowded += [OSError(errno.ETOOMANYREFS, "x")] * 3
        replies: list[Any] = []

        async def call() -> None:
            calls = [PING, PING._replace(signature="h", body=(0,)), ECHO]
            replies.extend(await link.calls(calls, deadline=soon()))

        nursery.start_soon(call)
        for text in (None, "a"):  # those without descriptors do not wait
            received = await peer.receive()
            await peer.send(reply(received.header.serial, text))
        received = await peer.receive()
        assert HeaderFields.unix_fds in received.header.fields
        os.close(received.body[0])
        await peer.send(reply(received.header.serial))
    assert (replies, crowded) == ([(), (), ("a",)], [])


async def test_descriptors_of_which_too_many_are_on_their_way_until_the_deadline(
    crowded: list[OSError],
) -> None:
    async with linked() as (link, peer):
        crowded += [OSError(errno.ETOOMANYREFS, "x")] * 1000
        with pytest.raises(Crowded):
            await link.call(PING._replace(signature="h", body=(0,)), deadline=trio.current_time() + 1)
        assert len(crowded) < 999
        await still_works(link, peer)


async def test_descriptors_are_not_received() -> None:
    signals: list[BusSignal] = []
    async with linked(signals) as (link, peer):
        before = open_descriptors()
        for _ in range(5):
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
            await peer.sock.sendmsg([signal(1)], rights)
        await still_works(link, peer)
        assert len(signals) == 5
        assert open_descriptors() == before


# A peer that does not read


async def test_a_cancelled_call_leaves_no_half_message() -> None:
    async with linked(calls_max=1000) as (link, peer):
        fd = os.open("/dev/null", os.O_RDONLY)
        large = ECHO._replace(body=("x" * 50_000,))
        with_fd = PING._replace(signature="hs", body=(fd, "withdrawn"))
        scopes: list[trio.CancelScope] = []

        async def call(call: BusCall, scope: trio.CancelScope) -> None:
            with scope:
                await link.call(call, deadline=soon())

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                for each in (large, with_fd):
                    scopes.append(trio.CancelScope())
                    nursery.start_soon(call, each, scopes[-1])
            await trio.testing.wait_all_tasks_blocked()
            assert link._outgoing
            begun = [each for each in link._outgoing if each.begun]
            for scope in scopes:
                scope.cancel()
        os.close(fd)
        # What had been begun is finished, the rest has never been.
        assert list(link._outgoing) == begun
        assert len(begun) <= 1
        async with trio.open_nursery() as nursery:

            async def last() -> None:
                assert await link.call(ECHO._replace(body=("last",)), deadline=soon()) == ("last",)

            nursery.start_soon(last)
            while True:
                received = await peer.receive()
                if HeaderFields.unix_fds in received.header.fields:
                    os.close(received.body[0])
                if received.body == ("last",):
                    break
                assert received.body[-1] in {"withdrawn", "x" * 50_000}
            await peer.send(reply(received.header.serial, "last"))


async def test_places_are_shared_without_a_deadlock() -> None:
    async with linked(calls_max=10) as (link, peer), trio.open_nursery() as nursery:
        done: list[int] = []

        async def batch(size: int) -> None:
            await link.calls([PING] * size, deadline=soon())
            done.append(size)

        sizes = [7, 6, 10, 1, 9, 2, 8, 3] * 5
        for size in sizes:
            nursery.start_soon(batch, size)
        for _ in range(sum(sizes)):
            assert len(link._pending) <= 10
            await peer.send(reply((await peer.receive()).header.serial))
        while len(done) < len(sizes):
            await trio.testing.wait_all_tasks_blocked()
        assert sorted(done) == sorted(sizes)
        for size in (0, 11):
            with pytest.raises(ValueError, match="at once"):
                await link.calls([PING] * size, deadline=soon())


async def test_waiting_for_a_place_ends_with_the_link() -> None:
    async with linked(calls_max=1) as (link, _):
        failures: list[dbus.BusError] = []

        async def call() -> None:
            failures.append(await failure_of(link, PING))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            link.close("enough")
        assert sorted(each.sent for each in failures if isinstance(each, BusClosed)) == [False] * 4 + [True]


# Strangers


async def test_calls_of_strangers_are_refused() -> None:
    async with linked() as (link, peer):

        def call(serial: int, sender: str) -> bytes:
            kind = MessageType.method_call
            return message(kind, serial, path="/a", interface="org.example.A", member="B", sender=sender)

        await peer.send(call(77, ":1.5"))
        refusal = await peer.receive()
        assert refusal.header.message_type is MessageType.error
        assert refusal.header.fields[HeaderFields.reply_serial] == 77
        assert refusal.header.fields[HeaderFields.destination] == ":1.5"
        assert refusal.header.fields[HeaderFields.error_name].endswith(".UnknownMethod")
        silent = bytearray(call(78, ":1.5"))
        silent[2] = 1  # no reply expected
        await peer.send(bytes(silent))
        await still_works(link, peer)


async def test_refusals_to_a_peer_that_does_not_read_are_bounded() -> None:
    async with linked() as (link, peer):
        call = message(MessageType.method_call, 77, path="/a", interface="org.example.A", member="B")
        for _ in range(200):
            await peer.send(call * 100)
        assert len(link._outgoing) <= dbus.BACKLOG_MAX


EXAMPLES = [reply(1, "text"), reply(1), signal(5), message(
    MessageType.error, 3, ("why",), "s", reply_serial=1, error_name="org.example.No"
)]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.binary(max_size=200)
        | st.tuples(st.sampled_from(EXAMPLES), st.integers(0, 200), st.binary(max_size=8)).map(
            lambda it: it[0][: it[1] % len(it[0])] + it[2] + it[0][it[1] % len(it[0]) + len(it[2]) :]
        ),
        max_size=5,
    ),
    st.integers(1, 50),
)
def test_any_bytes_are_survived(pieces: list[bytes], each: int) -> None:
    """Whatever comes: the call ends as it should, and nothing else breaks."""

    async def main() -> None:
        signals: list[BusSignal] = []
        async with linked(signals) as (link, peer), trio.open_nursery() as nursery:

            async def serve() -> None:
                try:
                    for piece in pieces:
                        await peer.send(piece, each=each)
                except BrokenPipeError:
                    pass
                peer.sock.shutdown(socket.SHUT_RDWR)

            nursery.start_soon(serve)
            with suppress(BusClosed, CallFailed, BadReply):
                await link.call(ECHO, deadline=soon())
            await closed(link)
        for each_signal in signals:
            if each_signal.is_change_of("a"):
                each_signal.changed("b", "s")

    trio.run(main)
