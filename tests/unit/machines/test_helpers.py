"""What is asked for in helpers, decided without a service manager."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import names
from moorage.machines import model
from moorage.machines.errors import InvalidHelper
from moorage.machines.gather import gather
from moorage.machines.helpers.programs import check_programs
from moorage.machines.helpers.spec import check
from moorage.machines.helpers.units import RuntimeDirectories, auxiliary_names, to_records
from moorage.machines.model import Helper, HelperFailure, HelperSocket, HelperSpec
from moorage.names import UnitNames

SYSTEM = RuntimeDirectories(user=False, root="/run")
USER = RuntimeDirectories(user=True, root="/run/user/1000")
WEB = UnitNames("web")
ALICE = 1000


def spec(name: str = "fs", **fields: Any) -> HelperSpec:
    command: Any = fields.pop("exec_start", ("/usr/bin/sleep", "1"))
    return HelperSpec(name=name, exec_start=command, **fields)


def wrong(
    specs: Sequence[HelperSpec], existing: Sequence[Helper] = (), home: RuntimeDirectories = SYSTEM
) -> str:
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
    check([spec("x", after=("old",))], "web", to_records(WEB, [spec("old")]), SYSTEM)


def test_as_many_as_there_may_be_and_one_more() -> None:
    many = [spec(f"h{number}") for number in range(model.HELPERS_MAX)]
    check(many, "web", (), SYSTEM)
    assert wrong([*many, spec()]) == ""
    assert wrong([spec()], to_records(WEB, many)) == ""


def test_names_and_sockets_of_those_that_are_there() -> None:
    there = to_records(WEB, [spec("a", sockets=(HelperSocket("s"),))])
    assert wrong([spec("b"), spec("a")], there) == "[1].name"
    assert wrong([spec("b", sockets=(HelperSocket("t"), HelperSocket("s")))], there) == "[0].sockets[1].name"


@pytest.mark.parametrize("home", [SYSTEM, USER])
def test_the_path_of_a_socket_fits(home: RuntimeDirectories) -> None:
    longest = names.SUN_PATH_MAX - len(home.directory("web")) - 1
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
        set(auxiliary_names(UnitNames(machine), [spec(name, sockets=(HelperSocket("s"),))]))
        for machine, name in pairs
    ]
    if pairs[0][0] != pairs[1][0]:
        assert not found[0] & found[1]
    else:
        units = UnitNames(pairs[0][0])
        assert units.helper(pairs[0][1]) != units.helper(pairs[1][1])
    scopes = {UnitNames(machine).scope for machine, _ in pairs}
    assert not scopes & (found[0] | found[1])


@given(st.lists(st.text("ab:\\+@.-_", max_size=6), min_size=2, max_size=2, unique=True))
def test_directories_can_be_told_apart(machines: list[str]) -> None:
    valid = [name for name in machines if names.is_machine_name(name)]
    assert len({names.directory_name(name) for name in valid}) == len(valid)
    assert not any(set(":\\/%") & set(names.directory_name(name)) for name in valid)


async def test_programs_that_are_there_and_that_are_not() -> None:
    await check_programs([spec(exec_start=("/bin/sh",))])
    for path in ("/bin", "/none", "/etc/passwd", "/etc/passwd/x"):
        with pytest.raises(InvalidHelper, match=r"\[1\].execStart\[0\]"):
            await check_programs([spec(exec_start=("/bin/sh",)), spec(exec_start=(path,))])
    # In another root there are other programs.
    await check_programs([spec(exec_start=("/none",), properties={"RootDirectory": "/srv"})])


def test_what_is_kept() -> None:
    (found,) = to_records(WEB, [spec(on_failure=HelperFailure.stop_machine, sockets=(HelperSocket("s"),))])
    assert found == Helper("fs", "machine-web-fs.service", HelperFailure.stop_machine, ("s",))


async def test_together() -> None:
    async def give(value: int) -> int:
        if value < 0:
            raise ValueError(value)
        return value

    assert await gather([lambda value=value: give(value) for value in range(9)]) == list(range(9))
    with pytest.raises(ValueError, match="-1"):
        await gather([lambda value=value: give(value) for value in (1, -1, 2)])
    assert await gather([]) == []
