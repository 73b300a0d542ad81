"""The states of a link: every one is described, and can be left."""

import pytest

from moorage.wire.turns import IN, OUT, TRANSITIONS, WATCHED, Event, State


def test_the_tables_are_complete() -> None:
    assert set(TRANSITIONS) == set(WATCHED) == set(State)
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)


@pytest.mark.parametrize("state", State)
def test_every_state_leads_to_the_end(state: State) -> None:
    assert state is State.CLOSED or TRANSITIONS[state][Event.CLOSE] is State.CLOSED


@pytest.mark.parametrize("state", [state for state in State if state is not State.READING])
def test_a_call_that_is_done_makes_room_for_the_next(state: State) -> None:
    assert TRANSITIONS[state][Event.DONE] is (State.CLOSED if state is State.CLOSED else State.READING)


@pytest.mark.parametrize("state", State)
def test_what_is_left_to_write_is_written_when_the_socket_is_ready(state: State) -> None:
    usual, more = WATCHED[state]
    assert (more is None) == (usual is None)
    assert more is None or more & OUT


def test_input_is_read_between_calls_only() -> None:
    assert [state for state, (usual, _) in WATCHED.items() if usual and usual & IN] == [
        State.READING,
        State.WORKING,
        State.FEEDING,
    ]
