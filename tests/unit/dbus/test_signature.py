"""Signatures are taken apart, or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.dbus.signature import alignment, split


@pytest.mark.parametrize(
    ("signature", "types"),
    [
        ("", ()),
        ("s", ("s",)),
        ("sas(ii)a{sv}v", ("s", "as", "(ii)", "a{sv}", "v")),
        ("a(iayu)aas", ("a(iayu)", "aas")),
        ("a{s(ta{ys})}", ("a{s(ta{ys})}",)),
        ("a" * 32 + "s", ("a" * 32 + "s",)),
    ],
)
def test_signatures(signature: str, types: tuple[str, ...]) -> None:
    assert split(signature) == types


@pytest.mark.parametrize(
    "signature",
    [
        "a",
        "(",
        ")",
        "()",
        "a{s}",
        "a{sss}",
        "{ss}",
        "a{vs}",
        "(s",
        "s)",
        "z",
        "a" * 33 + "s",
        "(" * 33 + "s" + ")" * 33,
        "s" * 256,
        "a{",
        "a{s",
    ],
)
def test_malformed_signatures(signature: str) -> None:
    with pytest.raises(ValueError, match=r"signature|struct|dictionary"):
        split(signature)


@given(st.text(alphabet="ybnqiuxtdsoghva(){}", max_size=300))
def test_any_signature_is_split_or_refused(signature: str) -> None:
    try:
        types = split(signature)
    except ValueError:
        return
    assert "".join(types) == signature


@pytest.mark.parametrize(
    ("bytes_", "types"),
    [(8, "xtd(tt)"), (4, "biusoah"), (2, "nq"), (1, "ygv")],
    ids=str,
)
def test_alignment(bytes_: int, types: str) -> None:
    assert {alignment(each) for each in types if each != ")"} == {bytes_}
