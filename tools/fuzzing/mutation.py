"""Hypothesis strategies that damage good input: bytes, and JSON values."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

from hypothesis import strategies as st

OPERATIONS_MAX = 4
"""Maximum number of damages to one input: input that is broken everywhere is refused at once, and tests little."""

POSITIONS = 2**16
"""Positions are drawn as a share of the length, so that they stay valid while hypothesis shrinks the input."""

TOKENS = (
    b"", b"\0", b"\0\0", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"false", b"-1", b"0",
    b"1e999",
    b"9" * 40, b"\xff", b"\xc3\x28", b'"\\ud800"', b'"\\u0000"', b"[" * 300, b'{"a":' * 300, b"\n", b" " * 70_000,
    b"\xff\xff\xff\xff", b"\0\0\0\x80", b"%", b"..", b"/",
)  # fmt: skip
"""Bytes that are special to parsers of JSON, TOML and D-Bus."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**400, 0.5, 1e300, "", "x",
    "\0", "a\nb", "\ud800", "\u202e", "x" * 5000, "..", "/", "/..", "infinity", [], [[]], [None], ["x"] * 300, {},
    {"x": 1}, {"": None},
)  # fmt: skip
"""Values of all JSON types, and of kinds that are easily forgotten."""

Operation = Callable[[bytes], bytes]


def _at(data: bytes, position: int) -> int:
    return position * (len(data) + 1) // POSITIONS


def _cut(position: int, length: int, data: bytes) -> bytes:
    at = _at(data, position)
    return data[:at] + data[at + length :]


def _put(position: int, what: bytes, data: bytes) -> bytes:
    at = _at(data, position)
    return data[:at] + what + data[at:]


def _overwrite(position: int, what: bytes, data: bytes) -> bytes:
    at = _at(data, position)
    return data[:at] + what + data[at + len(what) :]


def _flip(position: int, bit: int, data: bytes) -> bytes:
    at = _at(data, position)
    return data[:at] + bytes(byte ^ 1 << bit for byte in data[at : at + 1]) + data[at + 1 :]


def _repeat(position: int, length: int, times: int, data: bytes) -> bytes:
    at = _at(data, position)
    return data[:at] + data[at : at + length] * times + data[at + length :]


def _end(position: int, data: bytes) -> bytes:
    return data[: _at(data, position)]


def _graft(position: int, from_position: int, other: bytes, data: bytes) -> bytes:
    return data[: _at(data, position)] + other[_at(other, from_position) :]


def chosen(goods: Sequence[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for one of several. st.sampled_from() would print all of them with each failure."""
    return st.integers(0, len(goods) - 1).map(lambda number: goods[number])


def operations(goods: Sequence[bytes]) -> st.SearchStrategy[Operation]:
    """Return a strategy for one damage to bytes; pieces of other inputs come from good ones."""
    position = st.integers(0, POSITIONS - 1)
    what = chosen(TOKENS) | st.binary(max_size=8)
    return st.one_of(
        st.builds(partial, st.just(_flip), position, st.integers(0, 7)),
        st.builds(partial, st.just(_cut), position, st.integers(1, 32)),
        st.builds(partial, st.just(_put), position, what),
        st.builds(partial, st.just(_overwrite), position, what),
        st.builds(partial, st.just(_repeat), position, st.integers(1, 64), st.integers(2, 40)),
        st.builds(partial, st.just(_graft), position, position, chosen(goods)),
        st.builds(partial, st.just(_end), position),
    )


def damaged(goods: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return a strategy for one of several inputs with up to OPERATIONS_MAX damages."""

    def damage(good: bytes, damages: list[Operation]) -> bytes:
        for operate in damages:
            good = operate(good)
        return good

    return st.builds(damage, chosen(goods), st.lists(operations(goods), max_size=OPERATIONS_MAX))


Path = tuple[str | int, ...]


def _items(value: Any) -> list[tuple[str | int, Any]]:
    """Return keys and values of an object, or indices and values of an array; nothing for other values."""
    if isinstance(value, dict):
        return list(cast("dict[str | int, Any]", value).items())
    return list(enumerate(cast("list[Any]", value))) if isinstance(value, list) else []


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    for key, item in _items(value):
        yield from _paths(item, (*path, key))


def _changed(value: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    """Return a copy of a value with a function applied to the part at a path; _GONE removes the part."""
    if not path:
        return change(value)
    key, *rest = path
    changed = [
        (each, _changed(item, tuple(rest), change) if each == key else item) for each, item in _items(value)
    ]
    kept = [(each, item) for each, item in changed if item is not _GONE]
    return dict(kept) if isinstance(value, dict) else [item for _, item in kept]


_GONE = object()


def damaged_json(goods: Sequence[Any], keep: frozenset[str] = frozenset()) -> st.SearchStrategy[Any]:
    """Return a strategy for one of several JSON values with up to OPERATIONS_MAX parts replaced, removed or moved.

    Args:
        goods: the values.
        keep: keys whose values stay as they are.
    """

    @st.composite
    def changed(draw: st.DrawFn) -> Any:
        return _damaged_value(draw, draw(chosen(goods)), keep)

    return changed()


def _damaged_value(draw: st.DrawFn, value: Any, keep: frozenset[str]) -> Any:
    for _ in range(draw(st.integers(0, OPERATIONS_MAX))):
        paths = [path for path in _paths(value) if path and not keep & set(path)]
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        match draw(st.integers(0, 4)):
            case 0:
                new = draw(st.sampled_from(VALUES))
                value = _changed(value, path, lambda _, new=new: new)
            case 1:
                value = _changed(value, path, lambda _: _GONE)
            case 2:
                part = _part(value, draw(st.sampled_from(paths)))
                value = _changed(value, path, lambda _, part=part: part)
            case 3:
                depth = draw(st.sampled_from((1, 2, 40, 260)))
                value = _changed(value, path, lambda old, depth=depth: _wrapped(old, depth))
            case _:
                text = draw(st.text(max_size=12))
                value = _changed(value, path, lambda old, text=text: _near(old, text))
    return value


def _part(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def _wrapped(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def _near(value: Any, text: str) -> Any:
    """Return a strategy for a value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return value + len(text) - 3
        case str():
            return value[: len(text)] + text
        case [*items]:
            return [*items, *items, text]
        case dict():
            return {**cast("dict[str, Any]", value), text: text}
        case _:
            return text


def encode_json(value: Any) -> bytes:
    """Return JSON text, with lone surrogates if there are any."""
    return json.dumps(value, separators=(",", ":")).encode()
