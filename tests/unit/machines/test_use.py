"""Pressure and traffic, as the kernel's files tell them."""

import pytest

from moorage.machines.use import Pressure, PressureLine, pressure, traffic, waited

SOME = "some avg10=1.50 avg60=0.25 avg300=0.00 total=12345"


def test_both_lines_of_pressure() -> None:
    found = pressure(f"{SOME}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0")
    assert found == Pressure(PressureLine(1.5, 0.25, 0.0, 12345), PressureLine(0.0, 0.0, 0.0, 0))


def test_a_line_alone() -> None:
    assert pressure(SOME) == Pressure(PressureLine(1.5, 0.25, 0.0, 12345))


@pytest.mark.parametrize(
    "text", ["", "some", "some avg10=x avg60=0 avg300=0 total=0", "other words", "some avg10"]
)
def test_what_is_not_understood_is_left_out(text: str) -> None:
    assert pressure(text) is None


def test_traffic_of_each_device() -> None:
    text = "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n7:1\n253:0 rbytes=5 cost.usage=7 odd\n"
    assert traffic(text) == {
        "8:0": {
            "readBytes": 4096, "writeBytes": 0, "readOperations": 1, "writeOperations": 0, "discardBytes": 0,
            "discardOperations": 0,
        },
        "253:0": {"readBytes": 5},
    }  # fmt: skip
    assert traffic("") == {}


def test_how_long_tasks_waited_in_all() -> None:
    text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=17\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5"
    assert waited(text) == {"some": 17, "full": 5}
    assert waited("") == waited("some avg10=1\nfull total=x") == {}
