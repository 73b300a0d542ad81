"""What is asked for in helpers, decided without a service manager."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.machines import model
from moorage.machines.errors import InvalidHelper
from moorage.machines.helpers import (
    Home,
    auxiliary_names,
    check,
    check_programs,
    recorded,
)
from moorage.machines.model import Helper, HelperFailure, HelperSocket, HelperSpec, helper_unit
from moorage.machines.together import together

SYSTEM = Home(user=False, root="/run")
USER = Home(user=True, root="/run/user/1000")
ALICE = 1000


def spec(name: str = "fs", **fields: Any) -> HelperSpec:
    command: Any = fields.pop("exec_start", ("/usr/bin/sleep", "1"))
    return HelperSpec(name=name, exec_start=command, **fields)


def wrong(specs: Sequence[HelperSpec], existing: Sequence[Helper] = (), home: Home = SYSTEM) -> str:
    """The field that is to blame."""
    with pytest.raises(InvalidHelper) as failure:
        check(specs, "web", existing, home)
    return failure.value.field


def test_what_is_right() -> None:
    sockets = (HelperSocket("s", mode=0o666), HelperSocket("t", mode=0o666))
    check([], "web", (), SYSTEM)
    check(
        [spec("c", after=("b", "a")), spec("b", after=("a",)), spec("a", sockets=sockets)], "web", (), SYSTEM
    )
    check([spec("x", after=("old",))], "web", recorded("web", [spec("old")]), SYSTEM)


def test_as_many_as_there_may_be_and_one_more() -> None:
    many = [spec(f"h{number}") for number in range(model.HELPERS_MAX)]
    check(many, "web", (), SYSTEM)
    assert wrong([*many, spec()]) == ""
    assert wrong([spec()], recorded("web", many)) == ""


def test_names_and_sockets_of_those_that_are_there() -> None:
    there = recorded("web", [spec("a", sockets=(HelperSocket("s"),))])
    assert wrong([spec("b"), spec("a")], there) == "[1].name"
    assert wrong([spec("b", sockets=(HelperSocket("t"), HelperSocket("s")))], there) == "[0].sockets[1].name"


@pytest.mark.parametrize("home", [SYSTEM, USER])
def test_the_path_of_a_socket_fits(home: Home) -> None:
    longest = model.SUN_PATH_MAX - len(home.directory("web")) - 1
    check([spec(sockets=(HelperSocket("s" * longest),))], "web", (), home)
    assert wrong([spec(sockets=(HelperSocket("s" * (longest + 1)),))], home=home) == "[0].sockets[0].name"


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.lists(st.sampled_from("abcdef"), max_size=3)), max_size=5
    )
)
def test_whatever_order_is_asked_for(pairs: list[tuple[str, list[str]]]) -> None:
    """Right is what can be put into an order in which everything comes after what it names."""
    specs = [spec(name, after=tuple(after)) for name, after in pairs]
    names = [name for name, _ in pairs]
    left = dict(pairs)
    while ready := [name for name, after in left.items() if not set(after) & left.keys()]:
        for name in ready:
            del left[name]
    possible = (
        len(set(names)) == len(names) and not left and all(set(after) <= set(names) for _, after in pairs)
    )
    if possible:
        check(specs, "web", (), SYSTEM)
    else:
        assert wrong(specs).startswith("[")


NAMES = st.text("aA0_.-@\\:", min_size=1, max_size=9)


@given(st.lists(st.tuples(NAMES, NAMES), min_size=2, max_size=2, unique=True))
def test_units_can_be_told_apart(pairs: list[tuple[str, str]]) -> None:
    found = [
        set(auxiliary_names(machine, [spec(name, sockets=(HelperSocket("s"),))])) for machine, name in pairs
    ]
    if pairs[0][0] != pairs[1][0]:
        assert not found[0] & found[1]
    else:
        assert helper_unit(*pairs[0]) != helper_unit(*pairs[1])
    scopes = {model.scope_name(machine) for machine, _ in pairs}
    assert not scopes & (found[0] | found[1])


@given(st.lists(st.text("ab:\\+@.-_", max_size=6), min_size=2, max_size=2, unique=True))
def test_directories_can_be_told_apart(names: list[str]) -> None:
    valid = [name for name in names if model.is_machine_name(name)]
    assert len({model.directory_name(name) for name in valid}) == len(valid)
    assert not any(set(":\\/%") & set(model.directory_name(name)) for name in valid)


async def test_programs_that_are_there_and_that_are_not() -> None:
    await check_programs([spec(exec_start=("/bin/sh",))])
    for path in ("/bin", "/none", "/etc/passwd", "/etc/passwd/x"):
        with pytest.raises(InvalidHelper, match=r"\[1\].execStart\[0\]"):
            await check_programs([spec(exec_start=("/bin/sh",)), spec(exec_start=(path,))])
    # In another root there are other programs.
    await check_programs([spec(exec_start=("/none",), properties={"RootDirectory": "/srv"})])


def test_what_is_kept() -> None:
    (found,) = recorded("web", [spec(on_failure=HelperFailure.stop_machine, sockets=(HelperSocket("s"),))])
    assert found == Helper("fs", "machine-web-fs.service", HelperFailure.stop_machine, ("s",))


async def test_together() -> None:
    async def give(value: int) -> int:
        if value < 0:
            raise ValueError(value)
        return value

    assert await together([lambda value=value: give(value) for value in range(9)]) == list(range(9))
    with pytest.raises(ValueError, match="-1"):
        await together([lambda value=value: give(value) for value in (1, -1, 2)])
    assert await together([]) == []
