"""Which drop-ins undo what is set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moorage.machines.drop_ins import undone
from moorage.pid1.manager import TypedProperty

SCOPE_D = "machine-.scope.d"


def told(directory: Path, line: str, name: str, signature: str, value: Any) -> list[str | None]:
    """Return what is said to be in force after a reload, with one line of a drop-in that comes last."""
    path = directory / SCOPE_D / "90-limits.conf"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"[Scope]\n{line}\n")
    found = undone({name: value}, [TypedProperty(name, signature, value)], [str(path)])
    return [each.effective for each in found]


@pytest.mark.parametrize(
    ("line", "name", "signature", "value"),
    [
        ("IPAccounting=true", "IPAccounting", "b", True),
        ("IPAccounting=off", "IPAccounting", "b", False),
        ("CPUQuota=20%", "CPUQuotaPerSecUSec", "t", 200_000),
        ("CPUQuota=", "CPUQuotaPerSecUSec", "t", "infinity"),
        ("CPUQuotaPeriodSec=100ms", "CPUQuotaPeriodUSec", "t", 100_000),
        ("MemoryMax=1G", "MemoryMax", "t", 1 << 30),
        ("AllowedCPUs=0,1", "AllowedCPUs", "ay", [3]),
    ],
)
def test_the_same_value_in_other_words_is_no_difference(
    tmp_path: Path, line: str, name: str, signature: str, value: Any
) -> None:
    assert told(tmp_path, line, name, signature, value) == []


@pytest.mark.parametrize(
    ("line", "name", "signature", "value", "effective"),
    [
        ("IPAccounting=no", "IPAccounting", "b", True, "no"),
        ("CPUQuota=30%", "CPUQuotaPerSecUSec", "t", 200_000, "30%"),
        ("CPUQuota=", "CPUQuotaPerSecUSec", "t", 200_000, None),
        ("CPUQuotaPeriodSec=1s", "CPUQuotaPeriodUSec", "t", 100_000, "1s"),
        ("MemoryMax=50%", "MemoryMax", "t", 1 << 30, "50%"),
        ("AllowedCPUs=0", "AllowedCPUs", "ay", [3], "0"),
    ],
)
def test_another_value_is_told(
    tmp_path: Path, line: str, name: str, signature: str, value: Any, effective: str | None
) -> None:
    assert told(tmp_path, line, name, signature, value) == [effective]


@pytest.mark.parametrize("line", ["IPAccounting=perhaps", "IPAccounting="])
def test_what_cannot_be_read_is_not_told(tmp_path: Path, line: str) -> None:
    assert told(tmp_path, line, "IPAccounting", "b", True) == []
