"""What fuzzing begins with, and what it has found: every file of the corpus, and the tool's own parts."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"

# The tools are no part of the package that is installed.
sys.path.insert(0, str(TOOLS))
command = importlib.import_module("fuzzing.command")
loop = importlib.import_module("fuzzing.loop")
manager = importlib.import_module("fuzzing.manager")
target = importlib.import_module("fuzzing.target")
sys.path.remove(str(TOOLS))

FILES = [
    pytest.param(each, path, id=f"{each.name}/{path.name}")
    for each in command.TARGETS
    for path in sorted((target.CORPUS / each.name).iterdir())
]


@pytest.mark.parametrize(("tried", "path"), FILES)
def test_a_file_of_the_corpus(tried: Any, path: Path) -> None:
    inputs = list(tried.of_file(path.read_bytes()))
    assert inputs
    for each in inputs:
        with loop.deadline(loop.INPUT_SECONDS):
            assert tried.examine(each)


def instead(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def replaced(data: bytes) -> bytes:
        return data.replace(old, new)

    return replaced


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"</interface>", b"</enterface>"),
        (b'type="t"', b'type="("'),
        (b'type="t"', b'type="?"'),
    ],
)
def test_a_description_of_units_that_is_none(old: bytes, new: bytes) -> None:
    damages = tuple((number, instead(old, new)) for number in range(manager.MESSAGES))
    assert manager.TARGET.examine(manager.Session(damages)) == "answered and refused"


def test_the_same_seed_makes_the_same_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    (helpers,) = [each for each in command.TARGETS if each.name == "helpers"]
    monkeypatch.setattr(loop, "BATCH", 20)

    def inputs(seed: int) -> list[bytes]:
        seen: list[bytes] = []

        def examine(given: bytes) -> str:
            seen.append(given)
            return "seen"

        assert loop.fuzz(target.Target("helpers", helpers.inputs, examine, helpers.of_file), 0.01, seed)
        return seen[:20]

    assert inputs(1) == inputs(1)
    assert inputs(1) != inputs(2)


def test_what_an_input_does_is_told_and_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    (helpers,) = [each for each in command.TARGETS if each.name == "helpers"]

    def examine(given: bytes) -> str:
        assert b"x" not in given
        return "seen"

    assert not loop.fuzz(target.Target("helpers", helpers.inputs, examine, helpers.of_file), 50, 1)
    assert "AssertionError" in capsys.readouterr().out


def for_ever() -> None:
    while True:  # a pause(2) may begin after the signal
        pass


def test_what_takes_too_long_is_told() -> None:
    with pytest.raises(AssertionError, match="no end"), loop.deadline(0.01):
        for_ever()
