"""Which property of which unit a refusal of the manager is about."""

import pytest

from moorage.pid1.blame import Blamed, Sent, all_chosen, blamed


@pytest.mark.parametrize(
    ("error", "text", "sent", "name"),
    [
        ("PropertyReadOnly", "Cannot set property X, or unknown property.", ["A", "X"], "X"),
        ("InvalidArgs", "Value specified in TasksMax is out of range", ["Delegate", "TasksMax"], "TasksMax"),
        (
            "InvalidArgs",
            "DeviceAllow= requires device node or pattern",
            ["Delegate", "DeviceAllow"],
            "DeviceAllow",
        ),
        ("InvalidArgs", "Invalid OOMPolicy setting: x", ["Slice", "OOMPolicy", "TasksMax"], "OOMPolicy"),
        ("InvalidArgs", "Unit name 'x.scope' is not a slice", ["Description", "Slice", "TasksMax"], "Slice"),
        ("InvalidArgs", "Invalid unit name 'x'", ["Slice", "After", "TasksMax"], "Slice"),
        ("InvalidArgs", "Invalid unit name x", ["Slice", "After", "TasksMax"], "After"),
        ("UnixProcessIdUnknown", "No such process", ["PIDFDs", "TasksMax"], "PIDFDs"),
        (
            "InvalidArgs",
            "Process 5 is a kernel thread, refusing.",
            ["PIDFDs", "TasksMax", "Delegate"],
            "PIDFDs",
        ),
        (
            "System.Error.EINVAL",
            "Failed to set unit properties: x",
            ["Description", "PIDFDs", "CPUWeight"],
            "CPUWeight",
        ),
        ("System.Error.EINVAL", "Failed to set unit properties: x", ["CPUWeight", "TasksMax"], None),
        ("InvalidArgs", "TasksMaxScale= out of range", ["TasksMax", "TasksMaxScale"], "TasksMaxScale"),
        ("InvalidArgs", "", [], None),
    ],
)
def test_a_property_is_blamed_by_the_text(error: str, text: str, sent: list[str], name: str | None) -> None:
    expected = None if name is None else Blamed(name, None)
    assert blamed(error, text, [Sent(None, sent)]) == expected


ERROR = "org.freedesktop.DBus.Error.InvalidArgs"


def test_the_unit_whose_property_a_caller_chose_is_blamed_before_one_that_has_it_anyway() -> None:
    scope = Sent(None, ["Slice", "TasksMax", "CPUWeight"], ("CPUWeight",))
    helper = Sent("fs", ["TasksMax", "Nice"], ("TasksMax",))
    assert blamed(ERROR, "TasksMax= is wrong", [scope, helper]) == Blamed("TasksMax", "fs")
    assert blamed(ERROR, "CPUWeight= is wrong", [scope, helper]) == Blamed("CPUWeight", None)
    assert blamed(ERROR, "Nice= is wrong", [scope, helper]) == Blamed("Nice", "fs")


def test_the_only_property_that_a_caller_chose_is_blamed_for_what_names_none() -> None:
    sent = [Sent(None, ["Slice", "TasksMax"]), Sent("fs", ["TasksMax", "Nice"], ("Nice",))]
    assert blamed(ERROR, "It is wrong", sent) == Blamed("Nice", "fs")


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (((), ()), None),
        ((("Nice",), ()), Blamed("Nice", None)),
        (((), ("UMask", "Nice")), Blamed("UMask, Nice", "fs")),
        ((("TasksMax",), ("Nice",)), Blamed("TasksMax, Nice", None)),
    ],
)
def test_all_that_a_caller_chose(
    chosen: tuple[tuple[str, ...], tuple[str, ...]], expected: Blamed | None
) -> None:
    scope, helper = chosen
    assert all_chosen([Sent(None, ["Slice"], scope), Sent("fs", ["Type"], helper)]) == expected
