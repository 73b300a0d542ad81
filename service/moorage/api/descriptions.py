"""The descriptions of the interfaces that are served."""

from __future__ import annotations

from pathlib import Path

_PACKAGED = Path(__file__).parent.parent / "interfaces"
_CHECKOUT = Path(__file__).parent.parent.parent.parent / "interfaces"


def load_description(name: str) -> str:
    """Return the description of an interface, from the package or from the checkout.

    Raises:
        FileNotFoundError: there is no such file.
    """
    directory = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
    return (directory / f"{name}.varlink").read_text(encoding="utf-8")
