"""Values that D-Bus can carry, for hypothesis."""

from typing import Any

from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
BASIC: dict[str, st.SearchStrategy[Any]] = {
    "y": st.integers(0, 2**8 - 1),
    "b": st.booleans(),
    "n": st.integers(-(2**15), 2**15 - 1),
    "q": st.integers(0, 2**16 - 1),
    "i": st.integers(-(2**31), 2**31 - 1),
    "u": st.integers(0, 2**32 - 1),
    "x": st.integers(-(2**63), 2**63 - 1),
    "t": st.integers(0, 2**64 - 1),
    "d": st.floats(allow_nan=False),
    "s": TEXT,
    "o": st.just("/org/example"),
    "g": st.sampled_from(["", "s", "a(sv)"]),
}


def values(depth: int) -> st.SearchStrategy[tuple[str, Any]]:
    """A complete type, and a value of it."""
    basic = st.sampled_from(sorted(BASIC)).flatmap(lambda name: BASIC[name].map(lambda value: (name, value)))
    if depth == 0:
        return basic
    lower = values(depth - 1)
    # All elements of an array are of one type: the same value several times is enough for the padding.
    arrays = st.tuples(lower.filter(lambda one: one[0] != "y"), st.integers(0, 3)).map(
        lambda pair: (f"a{pair[0][0]}", [pair[0][1]] * pair[1])
    )
    structs = st.lists(lower, min_size=1, max_size=4).map(
        lambda members: (f"({''.join(name for name, _ in members)})", tuple(value for _, value in members))
    )
    dictionaries = st.tuples(st.lists(TEXT, unique=True, max_size=3), lower).map(
        lambda pair: (f"a{{s{pair[1][0]}}}", dict.fromkeys(pair[0], pair[1][1]))
    )
    blobs = st.binary(max_size=9).map(lambda value: ("ay", value))
    return st.one_of(basic, arrays, structs, dictionaries, blobs, lower.map(lambda one: ("v", one)))
