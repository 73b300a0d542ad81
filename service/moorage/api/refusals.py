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
        for kind in type(error).__mro__:
            if (make := table.get(kind)) is not None:
                raise make(error) from None
        raise
