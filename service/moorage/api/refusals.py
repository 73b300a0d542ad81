"""Refusals as errors of an interface: each front door has one table, and this applies it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from moorage.wire.errors import VarlinkError

Table: TypeAlias = Mapping[type[Exception], Callable[[Any], VarlinkError]]
"""Constructors of the errors, by the class of the exception. The most specific class counts."""


@contextmanager
def translated(table: Table) -> Generator[None]:
    """Raise errors of an interface in place of the exceptions in its table; other exceptions are bugs, and pass.

    Raises:
        VarlinkError: as the table says.
    """
    try:
        yield
    except Exception as error:
        if (refusal := refusal_of(error, table)) is not None:
            raise refusal from None
        raise


def refusal_of(error: Exception, table: Table) -> VarlinkError | None:
    """Return the error of an interface that stands for an exception, None if the table has none."""
    made = (table[kind](error) for kind in type(error).__mro__ if kind in table)
    return next(made, None)
