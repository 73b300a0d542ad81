"""The connection without I/O: its table of states, framing, ownership of file descriptors, limits."""

import os
from collections.abc import Callable, Iterator
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.wire.connection import (
    CALL_MAX,
    CLOSED,
    INPUT_MAX,
    NEED_DATA,
    PAUSED,
    QUEUE_MAX,
    TRANSITIONS,
    Connection,
    Event,
    LocalProtocolError,
    Role,
    State,
    Wait,
)
from moorage.wire.errors import ProtocolError
from moorage.wire.message import CallMessage, ReplyMessage
from moorage.wire.output import WRITE_SIZE

TEXT: dict[Event, bytes] = {
    Event.CALL: b'{"method":"a.B","parameters":{}}\0',
    Event.CALL_MORE: b'{"method":"a.B","parameters":{},"more":true}\0',
    Event.CALL_ONEWAY: b'{"method":"a.B","parameters":{},"oneway":true}\0',
    Event.REPLY: b'{"parameters":{}}\0',
    Event.REPLY_CONTINUES: b'{"parameters":{},"continues":true}\0',
    Event.REPLY_ERROR: b'{"error":"a.E","parameters":{}}\0',
}
CALLS = (Event.CALL, Event.CALL_MORE, Event.CALL_ONEWAY)
REPLIES = (Event.REPLY, Event.REPLY_CONTINUES, Event.REPLY_ERROR)
SENT_BY_SERVER = (*REPLIES, Event.ONEWAY_DONE)


def send(connection: Connection, event: Event) -> None:
    match event:
        case Event.CALL | Event.CALL_MORE | Event.CALL_ONEWAY:
            connection.send_call(
                "a.B", b"{}", more=event is Event.CALL_MORE, oneway=event is Event.CALL_ONEWAY
            )
        case Event.REPLY | Event.REPLY_CONTINUES:
            connection.send_reply(b"{}", continues=event is Event.REPLY_CONTINUES)
        case Event.REPLY_ERROR:
            connection.send_error("a.E", b"{}")
        case Event.ONEWAY_DONE:
            connection.oneway_done()


def written(connection: Connection) -> bytes:
    data = b""
    while (chunk := connection.outgoing()) is not None:
        data += chunk[0]
        connection.sent(len(chunk[0]))
    return data


def server_in(state: State) -> Connection:
    server = Connection(Role.SERVER)
    match state:
        case State.CALL:
            server.receive_data(TEXT[Event.CALL])
        case State.STREAM:
            server.receive_data(TEXT[Event.CALL_MORE])
        case State.ONEWAY:
            server.receive_data(TEXT[Event.CALL_ONEWAY])
        case State.CLOSED:
            server.close()
        case State.ERROR:
            server.receive_data(b"x\0")
            with pytest.raises(ProtocolError):
                server.next_event()
        case State.IDLE:
            pass
    if state in {State.CALL, State.STREAM, State.ONEWAY}:
        assert isinstance(server.next_event(), CallMessage)
    assert server.state is state
    return server


@pytest.mark.parametrize("event", SENT_BY_SERVER)
@pytest.mark.parametrize("state", State)
def test_server_sends_what_the_table_says(state: State, event: Event) -> None:
    server = server_in(state)
    after = TRANSITIONS[state].get(event)
    if after is None:
        with pytest.raises(LocalProtocolError):
            send(server, event)
        assert server.state is state
        assert server.outgoing() is None
    else:
        send(server, event)
        assert server.state is after
        assert written(server) == TEXT.get(event, b"")


@pytest.mark.parametrize("event", CALLS)
@pytest.mark.parametrize("state", State)
def test_server_receives_what_the_table_says(state: State, event: Event) -> None:
    server = server_in(state)
    server.receive_data(TEXT[event])
    if state is State.IDLE:
        assert isinstance(server.next_event(), CallMessage)
        assert server.state is TRANSITIONS[state][event]
    else:
        assert server.next_event() is PAUSED
        assert server.state is state


@pytest.mark.parametrize("event", REPLIES)
@pytest.mark.parametrize(("call", "state"), [(Event.CALL, State.CALL), (Event.CALL_MORE, State.STREAM)])
def test_client_receives_what_the_table_says(call: Event, state: State, event: Event) -> None:
    client = Connection(Role.CLIENT)
    send(client, call)
    assert client.state is state
    client.receive_data(TEXT[event])
    after = TRANSITIONS[state].get(event)
    if after is None:
        with pytest.raises(ProtocolError):
            client.next_event()
        assert client.state is State.ERROR
    else:
        assert isinstance(client.next_event(), ReplyMessage)
        assert client.state is after


def test_client_without_a_call_expects_nothing() -> None:
    client = Connection(Role.CLIENT)
    assert client.next_event() is PAUSED
    client.receive_data(b"{")
    with pytest.raises(ProtocolError):
        client.next_event()


def test_oneway_call_awaits_nothing() -> None:
    client = Connection(Role.CLIENT)
    send(client, Event.CALL_ONEWAY)
    assert (client.state, client.awaited) == (State.IDLE, 0)


def test_nobody_sends_what_the_other_end_sends() -> None:
    with pytest.raises(LocalProtocolError):
        Connection(Role.SERVER).send_call("a.B")
    client = Connection(Role.CLIENT)
    client.send_call("a.B")
    with pytest.raises(LocalProtocolError):
        client.send_reply(b"{}")
    with pytest.raises(LocalProtocolError):
        client.send_call("a.B", more=True, oneway=True)


def test_end_of_stream() -> None:
    for role in Role:
        connection = Connection(role)
        connection.receive_data(b"")
        assert connection.next_event() is CLOSED
    server = Connection(Role.SERVER)
    server.receive_data(TEXT[Event.CALL] + b'{"half')
    server.receive_data(b"")
    assert isinstance(server.next_event(), CallMessage)
    assert server.next_event() is PAUSED
    server.send_reply(b"{}")
    assert server.next_event() is CLOSED
    client = Connection(Role.CLIENT)
    client.send_call("a.B")
    client.receive_data(b"")
    assert client.next_event() is CLOSED
    with pytest.raises(LocalProtocolError):
        client.send_call("a.B")


# -- two ends, back to back

SCRIPTS: list[list[tuple[Event, list[Event]]]] = [
    [(Event.CALL, [Event.REPLY])],
    [(Event.CALL, [Event.REPLY_ERROR]), (Event.CALL, [Event.REPLY])],
    [(Event.CALL_MORE, [Event.REPLY_CONTINUES] * 3 + [Event.REPLY])],
    [(Event.CALL_MORE, [Event.REPLY_CONTINUES, Event.REPLY_ERROR])],
    [(Event.CALL_ONEWAY, [Event.ONEWAY_DONE]), (Event.CALL, [Event.REPLY])],
    [(Event.CALL, [Event.REPLY])] * 5
    + [(Event.CALL_MORE, [Event.REPLY])]
    + [(Event.CALL, [Event.REPLY])] * 2,
]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_two_ends(script: list[tuple[Event, list[Event]]], size: int) -> None:
    """The whole script pipelined; what one end writes reaches the other in pieces of one size."""
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    for call, _ in script:
        send(client, call)
    replies = iter(script)
    received: list[Event] = []
    for piece in pieces(written(client), size):
        server.receive_data(piece)
        while isinstance(server.next_event(), CallMessage):
            call, answers = next(replies)
            assert server.state is TRANSITIONS[State.IDLE][call]
            for answer in answers:
                send(server, answer)
            for back in pieces(written(server), size):
                client.receive_data(back)
                while isinstance(reply := client.next_event(), ReplyMessage):
                    received.append(
                        Event.REPLY_CONTINUES
                        if reply.continues
                        else Event.REPLY_ERROR
                        if isinstance(reply.error, str)
                        else Event.REPLY
                    )
    assert next(replies, None) is None
    assert received == [
        event for _, answers in script for event in answers if event is not Event.ONEWAY_DONE
    ]
    assert (client.state, server.state, client.awaited) == (State.IDLE, State.IDLE, 0)


garbage = st.lists(
    st.binary(min_size=1)
    | st.sampled_from([*TEXT.values(), b"\0", b"{}\0", b'{"method":"a.B"', b"}\0", b"null\0"]),
    max_size=20,
)


@given(garbage, st.sampled_from(Role), st.sampled_from([*CALLS, None]))
def test_any_garbage_is_a_message_or_a_protocol_error(
    chunks: list[bytes], role: Role, call: Event | None
) -> None:
    connection = Connection(role)
    if role is Role.CLIENT and call is not None:
        send(connection, call)
    try:
        for chunk in chunks:
            connection.receive_data(chunk)
            while not isinstance(event := connection.next_event(), Wait):
                assert isinstance(event, CallMessage if role is Role.SERVER else ReplyMessage)
                if role is Role.SERVER:
                    send(connection, Event.ONEWAY_DONE if connection.state is State.ONEWAY else Event.REPLY)
    except ProtocolError:
        assert connection.state is State.ERROR
    connection.close()


@given(garbage)
def test_whole_and_byte_by_byte_are_the_same(chunks: list[bytes]) -> None:
    data = b"".join(chunks)

    def seen(size: int) -> list[object]:
        server = Connection(Role.SERVER)
        messages: list[object] = []
        try:
            for piece in pieces(data, size):
                server.receive_data(piece)
                while isinstance(event := server.next_event(), CallMessage):
                    messages.append((event.method, bytes(event.parameters), event.more, event.oneway))
                    send(server, Event.ONEWAY_DONE if event.oneway else Event.REPLY)
        except ProtocolError as error:
            messages.append(str(error))
        return messages

    assert seen(1) == seen(max(1, len(data)))


# -- limits


def test_longest_message() -> None:
    server = Connection(Role.SERVER, CALL_MAX)
    padding = CALL_MAX - 1 - len(b'{"method":"a.B","parameters":{"x":""}}')
    server.receive_data(b'{"method":"a.B","parameters":{"x":"%b"}}\0' % (b"y" * padding))
    assert isinstance(server.next_event(), CallMessage)


def test_longest_reply() -> None:
    client = Connection(Role.CLIENT)
    client.send_call("a.B")
    padding = INPUT_MAX - 1 - len(b'{"parameters":{"x":""}}')
    client.receive_data(b'{"parameters":{"x":"%b"}}\0' % (b"y" * padding))
    assert isinstance(client.next_event(), ReplyMessage)


@pytest.mark.parametrize(
    ("role", "longest"), [(Role.SERVER, CALL_MAX), (Role.SERVER, INPUT_MAX), (Role.CLIENT, INPUT_MAX)]
)
@pytest.mark.parametrize("whole", [True, False])
def test_too_long_a_message(role: Role, longest: int, whole: bool) -> None:
    end = Connection(role, longest)
    if role is Role.CLIENT:
        end.send_call("a.B")
    with pytest.raises(ProtocolError, match="too long"):  # noqa: PT012  # at whichever piece
        for piece in pieces(b"{" + b" " * longest, longest if whole else 1 << 16):
            end.receive_data(piece)
            assert end.next_event() is NEED_DATA
    assert end.state is State.ERROR


def test_too_long_a_message_is_not_sent(open_fds: Callable[[], int]) -> None:
    server = server_in(State.CALL)
    with pytest.raises(LocalProtocolError):
        server.send_reply(b'{"x":"%b"}' % (b"y" * INPUT_MAX), fds=[os.dup(0)])
    assert server.outgoing() is None
    server.close()


def test_too_many_messages_are_not_queued() -> None:
    server = server_in(State.STREAM)
    for _ in range(QUEUE_MAX):
        server.send_reply(b"{}", continues=True)
    with pytest.raises(LocalProtocolError):
        server.send_reply(b"{}", continues=True)
    server.close()
    assert server.queued == 0
    client = Connection(Role.CLIENT)
    for _ in range(QUEUE_MAX):
        client.send_call("a.B")
        written(client)
    with pytest.raises(LocalProtocolError):
        client.send_call("a.B")


# -- writing


@given(
    st.lists(st.integers(min_value=0, max_value=30_000), min_size=1, max_size=30),
    st.lists(st.integers(min_value=1, max_value=100_000), min_size=1, max_size=10),
)
def test_partial_writes_lose_and_repeat_nothing(sizes: list[int], counts: list[int]) -> None:
    server = server_in(State.STREAM)
    expected = b""
    for number, size in enumerate(sizes):
        parameters = b'{"x":"%b"}' % (b"%d," % number * size)[:size]
        server.send_reply(parameters, continues=True)
        expected += b'{"parameters":%b,"continues":true}\0' % parameters
    assert server.queued == len(expected)
    sent = b""
    for count in cycle([*counts, 50_000]):
        chunk = server.outgoing()
        if chunk is None:
            break
        taken = chunk[0][:count]
        sent += bytes(taken)
        server.sent(len(taken))
    assert sent == expected
    assert server.queued == 0


def test_short_messages_are_joined_and_long_ones_are_not() -> None:
    server = server_in(State.STREAM)
    for _ in range(10):
        server.send_reply(b"{}", continues=True)
    server.send_reply(b'{"x":"%b"}' % (b"y" * WRITE_SIZE), continues=True)
    chunk = server.outgoing()
    assert chunk is not None
    assert chunk[0] == TEXT[Event.REPLY_CONTINUES] * 10


# -- file descriptors


def test_fds_belong_to_the_message_whose_first_byte_came_with_them(open_fds: Callable[[], int]) -> None:
    server = Connection(Role.SERVER)
    fd = os.dup(0)
    server.receive_data(TEXT[Event.CALL][:5], [fd])
    assert server.next_event() is NEED_DATA
    server.receive_data(TEXT[Event.CALL][5:] + TEXT[Event.CALL])
    server.next_event()
    assert server.take_fds() == [fd]
    assert server.take_fds() == []
    server.send_reply(b"{}")
    assert isinstance(server.next_event(), CallMessage)
    assert server.take_fds() == []
    os.close(fd)


def test_fds_that_are_not_taken_are_closed_with_the_next_message(open_fds: Callable[[], int]) -> None:
    before = open_fds()
    server = Connection(Role.SERVER)
    server.receive_data(TEXT[Event.CALL], [os.dup(0), os.dup(0)])
    server.next_event()
    server.send_reply(b"{}")
    server.receive_data(TEXT[Event.CALL], [os.dup(0)])
    assert open_fds() == before + 3
    server.next_event()
    assert open_fds() == before + 1
    server.close()


@pytest.mark.parametrize("received", [b'{"method":', TEXT[Event.CALL]])
def test_fds_in_the_middle_of_a_message(open_fds: Callable[[], int], received: bytes) -> None:
    server = Connection(Role.SERVER)
    server.receive_data(received)
    with pytest.raises(ProtocolError):
        server.receive_data(b'"a.B"}\0', [os.dup(0)])
    assert server.state is State.ERROR


def test_fds_with_the_end_of_the_stream(open_fds: Callable[[], int]) -> None:
    with pytest.raises(ProtocolError):
        Connection(Role.SERVER).receive_data(b"", [os.dup(0)])


def test_a_message_whose_fds_were_lost_has_none() -> None:
    server = Connection(Role.SERVER)
    server.receive_data(TEXT[Event.CALL], truncated=True)
    assert isinstance(server.next_event(), CallMessage)
    assert server.take_fds() == []


def test_fds_that_were_lost_in_the_middle_of_a_message_are_a_violation() -> None:
    server = Connection(Role.SERVER)
    server.receive_data(TEXT[Event.CALL][:5])
    with pytest.raises(ProtocolError):
        server.receive_data(TEXT[Event.CALL][5:], truncated=True)


def test_close_closes_what_has_arrived_what_was_not_taken_and_what_was_not_sent(
    open_fds: Callable[[], int],
) -> None:
    before = open_fds()
    server = Connection(Role.SERVER)
    server.receive_data(TEXT[Event.CALL_MORE], [os.dup(0)])
    server.next_event()
    server.send_reply(b"{}", continues=True, fds=[os.dup(0), os.dup(0)])
    server.send_reply(b"{}", continues=True, fds=[os.dup(0)])
    arriving = Connection(Role.SERVER)
    arriving.receive_data(b"{", [os.dup(0)])
    assert open_fds() == before + 5
    for connection in (server, arriving):
        connection.close()
        connection.close()
    assert open_fds() == before


def test_a_message_with_fds_is_written_alone(open_fds: Callable[[], int]) -> None:
    server = server_in(State.STREAM)
    fds = [os.dup(0), os.dup(0)]
    server.send_reply(b"{}", continues=True)
    server.send_reply(b'{"fd":0}', continues=True, fds=fds)
    server.send_reply(b"{}", continues=True)
    server.send_reply(b"{}", continues=True)
    chunks: list[tuple[bytes, tuple[int, ...]]] = []
    while (chunk := server.outgoing()) is not None:
        chunks.append((bytes(chunk[0]), chunk[1]))
        server.sent(len(chunk[0]))
    plain = TEXT[Event.REPLY_CONTINUES]
    assert chunks == [
        (plain, ()),
        (b'{"parameters":{"fd":0},"continues":true}\0', tuple(fds)),
        (plain * 2, ()),
    ]


def test_fds_go_with_the_first_byte_only(open_fds: Callable[[], int]) -> None:
    before = open_fds()
    server = server_in(State.CALL)
    server.send_reply(b"{}", fds=[os.dup(0)])
    server.sent(1)
    assert open_fds() == before
    chunk = server.outgoing()
    assert chunk is not None
    assert (bytes(chunk[0]), chunk[1]) == (TEXT[Event.REPLY][1:], ())


def test_fds_of_what_cannot_be_sent_are_closed(open_fds: Callable[[], int]) -> None:
    with pytest.raises(LocalProtocolError):
        Connection(Role.SERVER).send_reply(b"{}", fds=[os.dup(0)])
    with pytest.raises(LocalProtocolError):
        Connection(Role.SERVER).send_call("a.B", fds=[os.dup(0)])
