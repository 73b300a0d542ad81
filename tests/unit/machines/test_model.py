"""Rules for names, against systemd's own where they are systemd's."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import names
from moorage.machines import texts
from moorage.names import UnitNames

NAMES = st.text("abzAZ019_@:.\\-", min_size=1, max_size=70)
ANY = st.text(max_size=80)


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("web", "machine-web.scope"),
        ("web-1", "machine-web\\x2d1.scope"),
        ("1", "machine-1.scope"),
        ("a.b", "machine-a.b.scope"),
        ("a@b", "machine-a\\x40b.scope"),
        ("a\\b", "machine-a\\x5cb.scope"),
        ("a:b_c", "machine-a:b_c.scope"),
        ("tasks", "machine-tasks.scope"),
        ("cgroup.procs", "machine-cgroup.procs.scope"),
        ("x.scope", "machine-x.scope.scope"),
        ("\\x2d", "machine-\\x5cx2d.scope"),
    ],
)
def test_a_scope_has_the_name_of_its_machine(name: str, scope: str) -> None:
    assert names.is_machine_name(name)
    assert UnitNames(name).scope == scope
    assert names.machine_of_scope(scope) == name


@given(NAMES.filter(names.is_machine_name))
def test_every_name_has_one_scope_and_back(name: str) -> None:
    scope = UnitNames(name).scope
    assert names.machine_of_scope(scope) == name
    assert len(scope) <= names.UNIT_NAME_MAX
    assert set(scope) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\")


@given(st.text("machine-.scope\\x2d@", max_size=40) | ANY)
def test_what_is_taken_for_a_machines_scope_is_one(unit: str) -> None:
    name = names.machine_of_scope(unit)
    if name is not None:
        assert UnitNames(name).scope == unit


@pytest.mark.parametrize(
    "unit",
    [
        "machine-.scope", "machine-a.service", "a.scope", "machine-a-b.scope", "machine-a\\x2.scope",
        "machine-\\x61.scope", "machine-a\\x2D.scope", "machine-" + "a" * 65 + ".scope", "",
    ],
)  # fmt: skip
def test_a_unit_that_is_no_machines(unit: str) -> None:
    assert names.machine_of_scope(unit) is None


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_escaping_is_undone(text: str) -> None:
    if text.isascii():
        assert names.unescape(names.escape(text)) == text
    assert names.escape(text).isascii()


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20),
        min_size=1,
        max_size=20,
    )
)
def test_escaping_is_that_of_systemd(texts: list[str]) -> None:
    done = subprocess.run(["systemd-escape", "--", *texts], capture_output=True, check=True, text=True)
    assert done.stdout.removesuffix("\n") == " ".join(names.escape(text) for text in texts)


def test_the_longest_names() -> None:
    assert names.is_machine_name("a" * names.NAME_MAX)
    assert not names.is_machine_name("a" * (names.NAME_MAX + 1))
    assert names.is_host_name("a" * names.NAME_MAX)
    assert not names.is_host_name("a" * (names.NAME_MAX + 1))
    # Each of these becomes four characters of the unit's name.
    assert not names.is_machine_name("a" + "@" * 63)


@pytest.mark.parametrize(
    "name", ["", ".", ".a", "-a", "a/b", "a\0", "a b", "a\n", "ä", "a%", "a\u0661", "\uff41"]
)
def test_what_is_no_name(name: str) -> None:
    assert not names.is_machine_name(name)
    assert not names.is_host_name(name)


@pytest.mark.parametrize("name", ["a_b", "a..b", "a.", "a@b", "a:b", "a\\b", "a-", "a.-b"])
def test_what_machined_takes_for_no_name(name: str) -> None:
    assert names.is_machine_name(name)
    assert not names.is_host_name(name)


@given(ANY | NAMES)
def test_what_machined_takes_is_a_name(name: str) -> None:
    assert not names.is_host_name(name) or names.is_machine_name(name)


@pytest.mark.parametrize(
    "name",
    ["a.slice", "machine.slice", "a-b-c.slice", "a\\x2db.slice", "a:b_c.d.slice", "a" * 249 + ".slice"],
)
def test_slices(name: str) -> None:
    assert names.is_slice_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "", "slice", ".slice", "-.slice", "--.slice", "-a.slice", "a-.slice", "a--b.slice", "a.slice ", "a/b.slice",
        "a.scope", "a@b.slice", "é.slice", "a\0.slice", "a\n.slice", "a.slice\n", "a" * 250 + ".slice",
    ],
)  # fmt: skip
def test_no_slices(name: str) -> None:
    assert not names.is_slice_name(name)


@given(ANY)
def test_a_path_is_absolute_and_straight(path: str) -> None:
    if texts.is_path(path):
        assert path.startswith("/")
        assert "/../" not in path + "/"
        assert "\0" not in path
        assert "\n" not in path


@pytest.mark.parametrize(
    "path", ["/", "/a", "/a/", "/a//b", "/a/..b", "/a b", "/ä", "/" + "a" * (texts.TEXT_MAX - 1)]
)
def test_paths(path: str) -> None:
    assert texts.is_path(path)


@pytest.mark.parametrize(
    "path", ["", "a", "..", "/..", "/a/../b", "/a\0", "/a\n", "/a\ud800", "/" + "a" * texts.TEXT_MAX]
)
def test_no_paths(path: str) -> None:
    assert not texts.is_path(path)


@pytest.mark.parametrize(
    "text", ["", "\0", "a\n", "\x1b[0m", "\x7f", "\ud800", "\u202e", "a" * (texts.TEXT_MAX + 1)]
)
def test_no_texts(text: str) -> None:
    assert not texts.is_text(text)


def test_ids() -> None:
    plain = "0123456789abcdefABCDEF0123456789"
    assert texts.is_id128(plain)
    assert texts.is_id128("01234567-89ab-cdef-ABCD-EF0123456789")
    for bad in ("", "0" * 32, "00000000-0000-0000-0000-000000000000", plain[:-1], plain + "0", plain[:-1] + "g",
                plain[:-1] + "\u0660", plain + "----", " " + plain[:-1]):  # fmt: skip
        assert not texts.is_id128(bad), bad
        assert texts.is_null_id128(bad) == (bad.strip("-") != "" and bad.strip("0-") == ""), bad
    assert not texts.is_null_id128(plain)


@given(ANY)
def test_an_id_has_32_digits(text: str) -> None:
    assert not texts.is_id128(text) or len(bytes.fromhex(text.replace("-", ""))) == 16
