"""Targets: where inputs come from, and how an input is tried."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from hypothesis import strategies as st

CORPUS = Path(__file__).resolve().parents[2] / "tests" / "corpus"
"""A directory for each target, with good inputs to damage, and bad inputs that once did harm."""

T = TypeVar("T")


@dataclass(frozen=True)
class Target(Generic[T]):
    """Something that takes input from outside.

    Attributes:
        name: of the target, and of its directory in the corpus.
        inputs: makes inputs.
        examine: tries one; returns in a word what became of it, and raises where that should not have been.
        of_file: the inputs that a file of the corpus stands for, undamaged.
    """

    name: str
    inputs: st.SearchStrategy[T]
    examine: Callable[[T], str]
    of_file: Callable[[bytes], Iterable[T]]


def corpus(name: str) -> Sequence[bytes]:
    """Return the files of a target in a fixed order."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
