"""From files to values: what is merged, what is wrong, and in which line."""

import os
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.configuration.files import BYTES_MAX, Locations
from moorage.configuration.loading import Given, load
from moorage.configuration.merging import PROBLEMS_MAX
from moorage.configuration.options import FIELDS, OPTIONS, name_of, written
from moorage.configuration.settings import INFO, Loaded, Settings
from moorage.configuration.toml import Malformed, parse, statements

PLENTY = 1_000_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "moored.conf.d").mkdir()
    return tmp_path


def loaded(directory: Path, given: dict[str, Given] | None = None, descriptors: int = PLENTY) -> Loaded:
    main = str(directory / "moored.conf")
    return load(Locations((main,), (f"{main}.d",), frozenset({os.geteuid()})), given or {}, descriptors)


def problems(directory: Path) -> list[str]:
    """What is wrong, without the directory."""
    return [str(each).removeprefix(f"{directory}/") for each in loaded(directory).problems]


def test_without_a_file_all_is_as_it_was(directory: Path) -> None:
    assert loaded(directory) == Loaded(Settings(), {}, ())


def test_each_option_is_set_by_its_file_and_line(directory: Path) -> None:
    (directory / "moored.conf").write_text(
        'machinesMax = 10\n\n# a remark\nleaseGrace = "10s"\ntasksMax = 7\n'
    )
    (directory / "moored.conf.d/50-x.conf").write_text("tasksMax = 8\n")
    (directory / "moored.conf.d/60-x.conf").write_text('"logLevel" = "debug"\n')
    found = loaded(directory)
    assert found.problems == ()
    assert found.settings == Settings(
        machines_max=10, lease_grace_usec=10_000_000, tasks_max=8, log_level=INFO + 1
    )
    assert found.sources == {
        "machines_max": f"{directory}/moored.conf:1",
        "lease_grace_usec": f"{directory}/moored.conf:4",
        "tasks_max": f"{directory}/moored.conf.d/50-x.conf:1",
        "log_level": f"{directory}/moored.conf.d/60-x.conf:1",
    }


def test_the_command_line_counts_more(directory: Path) -> None:
    (directory / "moored.conf").write_text('logLevel = "err"\nidleTimeout = "5min"\n')
    found = loaded(directory, {"idle_timeout_usec": Given(None, "--idle-timeout")})
    assert found.settings == Settings(idle_timeout_usec=None, log_level=INFO - 3)
    assert found.sources["idle_timeout_usec"] == "--idle-timeout"


@given(
    st.lists(st.dictionaries(st.sampled_from(["machinesMax", "tasksMax"]), st.integers(1, 99)), max_size=5)
)
def test_the_last_file_counts(
    tmp_path_factory: pytest.TempPathFactory, contents: list[dict[str, int]]
) -> None:
    directory = tmp_path_factory.mktemp("conf")
    (directory / "moored.conf.d").mkdir()
    merged: dict[str, int] = {}
    for number, content in enumerate(contents):
        text = "".join(f"{name} = {value}\n" for name, value in content.items())
        (directory / f"moored.conf.d/{number}.conf").write_text(text)
        merged |= content
    settings = loaded(directory).settings
    assert settings == msgspec.structs.replace(
        Settings(), **{FIELDS[name]: value for name, value in merged.items()}
    )


_SPAN = 'must be a span of time in quotation marks, such as "30s" or "2min", '
_LEVELS = "must be a level in quotation marks: emerg, alert, crit, err, warning, notice, info, debug"
_RIGHT = {
    "machinesMax": "must be an integer, 1 to 65536; 16384 stays in force",
    "leaseGrace": f"{_SPAN}1s to 10min; 5s stays in force",
    "idleTimeout": f"{_SPAN}1s to 1y, or infinity; 30s stays in force",
    "runtimeDirectorySize": 'must be a size in quotation marks, such as "64M" or "1G", 1M to 1T; 64M stays in force',
    "logLevel": f"{_LEVELS}; info stays in force",
    "slice": 'must be the name of a slice in quotation marks, such as "vms.slice"; machine.slice stays in force',
}
_WRONG = {
    "machinesMax": ("0", "-1", "65537", "true", "5.0", "'5'", "{}", "[]", "nan", "1979-05-27"),
    "leaseGrace": ("5", "'infinity'", "'soon'", "'-5s'", "''", "true", "'11min'"),
    "idleTimeout": ("'0'", "0", "'999y'", "inf"),
    "runtimeDirectorySize": ("67108864", "'1K'", "'much'", "'2T'"),
    "logLevel": ("6", "'6'", "'INFO'"),
    "slice": ("'vms'", "5", "'a--b.slice'", "'/vms.slice'"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in _WRONG for value in _WRONG[name]])
def test_a_bad_value_is_told_with_its_line_and_what_is_right(directory: Path, name: str, value: str) -> None:
    (directory / "moored.conf").write_text(f"# first\n\n{name} = {value}\n")
    assert problems(directory) == [f"moored.conf:3: {name}: {_RIGHT[name]}"]
    assert loaded(directory).settings == Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("machinesmax = 5", "there is no option machinesmax, ignoring it; did you mean machinesMax?"),
        ("xyz = 5", "there is no option xyz, ignoring it"),
        ("xyz = 1979-05-27", "there is no option xyz, ignoring it"),
        ("[a]\nmachinesMax = 5", "there are no tables, ignoring [a]: options are written without one"),
        ("machines.max = 5", "there are no tables, ignoring [machines]: options are written without one"),
        ('"\\u001b[1m" = 1', "there is no option \\x1b[1m, ignoring it"),
    ],
)
def test_an_unknown_option_is_told_with_its_line(directory: Path, text: str, said: str) -> None:
    (directory / "moored.conf").write_text(f"# first\n\n{text}\n")
    assert problems(directory) == [f"moored.conf:3: {said}"]
    assert loaded(directory).settings == Settings()


def test_what_was_in_force_stays(directory: Path) -> None:
    (directory / "moored.conf").write_text("machinesMax = 10\n")
    (directory / "moored.conf.d/x.conf").write_text("tasksMax = 5\nmachinesMax = -1\n")
    found = loaded(directory)
    assert (found.settings.machines_max, found.settings.tasks_max) == (10, 5)
    assert found.sources["machines_max"] == f"{directory}/moored.conf:1"
    assert problems(directory) == [
        "moored.conf.d/x.conf:2: machinesMax: must be an integer, 1 to 65536; 10 stays in force"
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"machinesMax = 5\nmachinesMax",
            ":2: it is not TOML: ",
        ),
        (b"machinesMax = 5\nx = 'a", ':2: it is not TOML: Expected "\'"'),
        (b"machinesMax = 5\n\nmachinesMax = 6\n", ":3: it is not TOML: "),
        (b"machinesMax = 5\n\xff = 5\n", ":2: it is not UTF-8"),
        (b"x = " + b"[" * 20_000, ": it is nested too deeply"),
        (b"machinesMax = " + b"9" * 20_000, ": it is not TOML: "),
        (b"\xff\xfem\0a\0", ":1: it is not UTF-8"),
        (b"machinesMax=5\0", ":1: it is not TOML"),
        (b"a = 1\n'\x1b[1m' = 1", ":2: it is not TOML"),
    ],
)
def test_a_damaged_file_is_ignored_whole(directory: Path, content: bytes, said: str) -> None:
    (directory / "moored.conf").write_bytes(content)
    (directory / "moored.conf.d/x.conf").write_text("tasksMax = 5\n")
    (found,) = problems(directory)
    assert found.startswith(f"moored.conf{said}")
    assert found.endswith("; the file is ignored")
    assert found.isprintable()
    assert loaded(directory).settings == Settings(tasks_max=5)


def test_a_file_that_cannot_be_read_is_told(directory: Path) -> None:
    os.mkfifo(directory / "moored.conf")
    (directory / "moored.conf.d/a.conf").symlink_to("/dev/null")
    (directory / "moored.conf.d/b.conf").symlink_to("/nowhere")
    (directory / "moored.conf.d/c.conf").write_text("x = 5")
    os.chmod(directory / "moored.conf.d/c.conf", 0o666)
    assert problems(directory) == [
        "moored.conf: it is not a file; the file is ignored",
        "moored.conf.d/b.conf: cannot be read: No such file or directory; the file is ignored",
        "moored.conf.d/c.conf: everybody can write it; chmod o-w would mend that; the file is ignored",
    ]


def test_problems_have_an_end(directory: Path) -> None:
    (directory / "moored.conf").write_text("".join(f"option{number} = 1\n" for number in range(3000)))
    found = loaded(directory).problems
    assert len(found) == PROBLEMS_MAX + 1
    assert str(found[-1]) == f"and: {3000 - PROBLEMS_MAX} more"
    assert not any(each.severe for each in found)


def test_more_file_descriptors_than_there_are(directory: Path) -> None:
    (directory / "moored.conf").write_text("machinesMax = 50000\n")
    assert loaded(directory).problems == ()
    (found,) = loaded(directory, descriptors=65_536).problems
    assert str(found) == (
        f"{directory}/moored.conf:1: machinesMax + connectionsMax + trustedConnectionsMax is 70480, "
        "but the service may open 65536 files (LimitNOFILE=)"
    )
    (directory / "moored.conf").write_text("tasksMax = 50000\nmachinesMax = 10\n")
    assert loaded(directory, descriptors=10).problems == (), "nobody has raised what we come with"


@given(st.binary(max_size=300))
def test_whatever_is_in_a_file_there_is_an_answer(content: bytes) -> None:
    try:
        document, lines = parse(content)
    except Malformed:
        return
    assert set(document) <= set(lines)


_FRAGMENTS = (
    "a",
    "b",
    '"',
    "'",
    '"""',
    "'''",
    "=",
    " = ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "\n",
    "\r\n",
    "#",
    "\\",
    "1",
    ".",
)


@given(st.lists(st.sampled_from(_FRAGMENTS), max_size=40).map("".join))
def test_whatever_looks_like_toml_there_is_an_answer(text: str) -> None:
    try:
        document, lines = parse(text.encode())
    except Malformed:
        return
    assert set(document) <= set(lines)


_VALUES = st.sampled_from(
    ["1", '"x"', "'#'", '"""\na = 1\n"""', "'''\n[b]\n'''", '"""\\""""""', "[\n1, # ]\n2\n]", "{ a = [ 1 ] }",
     '"""a"""', '["#", "\\\\"]', "1979-05-27 07:32:00"]
)  # fmt: skip


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "\n", "# = [\n", "  # '''\n"]), _VALUES, st.booleans()), max_size=8
    )
)
def test_each_key_is_found_in_its_line(parts: list[tuple[str, str, bool]]) -> None:
    text, wanted = "", {}
    for number, (before, value, remark) in enumerate(parts):
        text += before
        wanted[f"k{number}"] = text.count("\n") + 1
        text += f"k{number} = {value}{' # [ remark' if remark else ''}\n"
    text += "[table]\nk0 = 5\n"
    document, lines = parse(text.encode())
    assert document == tomllib.loads(text)
    assert lines | wanted == lines
    assert "".join(statement for _, statement in statements(text)).count("=") >= len(parts)


@pytest.mark.parametrize("field", Settings.__struct_fields__)
def test_what_is_written_is_read(field: str) -> None:
    kind, default = OPTIONS[field].kind, getattr(Settings(), field)
    text = written(Settings(), field)
    value: Any = int(text) if text.isdigit() else {"true": True, "false": False}.get(text, text)
    assert kind.parse(value) == default, "the default is in its range"
    assert FIELDS[name_of(field)] == field
    assert str(kind)


def test_a_large_file_is_read_in_the_end(directory: Path) -> None:
    (directory / "moored.conf").write_text(
        "x = [\n" + "1,\n" * ((BYTES_MAX - 20) // 3) + "]\ntasksMax = 5\n"
    )
    found = loaded(directory)
    assert found.settings.tasks_max == 5
    assert len(found.problems) == 1
