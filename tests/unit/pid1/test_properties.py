"""Properties from JSON to D-Bus and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.pid1.errors import InvalidProperty, NoSuchProperty
from moorage.pid1.manager import Json
from moorage.pid1.properties import (
    ELEMENTS_MAX,
    INTROSPECTION_MAX,
    PROPERTIES_MAX,
    TEXT_MAX,
    UnitProperties,
    to_json,
)

INTROSPECTION = """\
<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
"https://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>
 <interface name="org.freedesktop.DBus.Peer"><property name="Foreign" type="s" access="read"/></interface>
 <interface name="org.freedesktop.systemd1.Unit">
  <property name="Description" type="s" access="read"/>
  <property name="After" type="as" access="read"/>
  <property name="Conditions" type="a(sbbsi)" access="read"/>
 </interface>
 <interface name="org.freedesktop.systemd1.Scope">
  <property name="Delegate" type="b" access="read"/>
  <property name="TasksMax" type="t" access="read"/>
  <property name="KillSignal" type="i" access="read"/>
  <property name="Byte" type="y" access="read"/>
  <property name="Short" type="n" access="read"/>
  <property name="Word" type="q" access="read"/>
  <property name="Double" type="d" access="read"/>
  <property name="Long" type="x" access="read"/>
  <property name="Limit" type="u" access="read"/>
  <property name="AllowedCPUs" type="ay" access="read"/>
  <property name="IODeviceWeight" type="a(st)" access="read"/>
  <property name="IPAddressAllow" type="a(iayu)" access="read"/>
  <property name="RestrictNetworkInterfaces" type="(bas)" access="read"/>
  <property name="Map" type="a{st}" access="read"/>
  <property name="Numbered" type="a{ut}" access="read"/>
  <property name="Any" type="v" access="read"/>
  <property name="ExecStart" type="a(sasbttttuii)" access="read"/>
 </interface>
</node>
"""
TYPES = UnitProperties.from_introspection(INTROSPECTION, 262)

# D-Bus values as they are sent, and the JSON that they come from.
GOOD: list[tuple[str, Json, str, object]] = [
    ("Description", "ü", "s", "ü"),
    ("After", [], "as", []),
    ("After", ["a.service", "b.service"], "as", ["a.service", "b.service"]),
    ("Delegate", True, "b", True),
    ("TasksMax", 0, "t", 0),
    ("TasksMax", 2**64 - 1, "t", 2**64 - 1),
    ("TasksMax", "infinity", "t", 2**64 - 1),
    ("KillSignal", -(2**31), "i", -(2**31)),
    ("Byte", 255, "y", 255),
    ("Short", -(2**15), "n", -(2**15)),
    ("Word", 2**16 - 1, "q", 2**16 - 1),
    ("Double", 1, "d", 1.0),
    ("Double", 0.5, "d", 0.5),
    ("Long", -(2**63), "x", -(2**63)),
    ("Limit", 2**32 - 1, "u", 2**32 - 1),
    ("AllowedCPUs", [1, 255], "ay", b"\x01\xff"),
    ("IODeviceWeight", [["/dev/a", "infinity"]], "a(st)", [("/dev/a", 2**64 - 1)]),
    ("IPAddressAllow", [[2, [10, 0, 0, 0], 8]], "a(iayu)", [(2, b"\x0a\0\0\0", 8)]),
    ("RestrictNetworkInterfaces", [True, ["lo"]], "(bas)", (True, ["lo"])),
    ("Map", {"a": 1}, "a{st}", {"a": 1}),
    (
        "Conditions",
        [["ConditionPathExists", False, True, "/"]],
        "a(sbbs)",
        [("ConditionPathExists", False, True, "/")],
    ),
    ("ExecStart", [["/bin/a", ["a", "b"], False]], "a(sasb)", [("/bin/a", ["a", "b"], False)]),
    ("User", "alice", "s", "alice"),
    ("PIDs", [5], "au", [5]),
    ("TasksMaxScale", 2**31, "u", 2**31),
    ("AddRef", True, "b", True),
]

BAD: list[tuple[str, Json]] = [
    ("Description", None), ("Description", 5), ("Description", ["a"]), ("Description", "a\0b"),
    ("Description", "\ud800"),
    ("After", "a"), ("After", [5]), ("After", [None]), ("After", {"a": "b"}),
    ("Delegate", 1), ("Delegate", 0), ("Delegate", "yes"), ("Delegate", None),
    ("TasksMax", -1), ("TasksMax", 2**64), ("TasksMax", True), ("TasksMax", 1.0), ("TasksMax", "5"),
    ("TasksMax", "Infinity"), ("TasksMax", None), ("TasksMax", 10**400),
    ("KillSignal", 2**31), ("KillSignal", -(2**31) - 1), ("KillSignal", "infinity"), ("KillSignal", 9.5),
    ("Byte", 256), ("Byte", -1), ("Short", 2**15), ("Word", 2**16), ("Word", -1), ("Long", 2**63),
    ("Limit", 2**32), ("Limit", "infinity"),
    ("Double", "1"), ("Double", True), ("Double", 10**400), ("Double", None),
    ("AllowedCPUs", "AQ=="), ("AllowedCPUs", [256]), ("AllowedCPUs", [-1]), ("AllowedCPUs", [True]),
    ("AllowedCPUs", ["1"]), ("AllowedCPUs", 1),
    ("IODeviceWeight", [["/dev/a"]]), ("IODeviceWeight", [["/dev/a", 1, 2]]), ("IODeviceWeight", [[1, "/dev/a"]]),
    ("IODeviceWeight", ["/dev/a", 1]), ("IODeviceWeight", {"/dev/a": 1}),
    ("RestrictNetworkInterfaces", [True]), ("RestrictNetworkInterfaces", []), ("RestrictNetworkInterfaces", True),
    ("Map", [["a", 1]]), ("Map", {"a": "b"}), ("Map", {"a\0": 1}), ("Numbered", {"1": 1}),
    ("Any", 5), ("PIDFDs", [5]), ("PIDFDs", 5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "signature", "sent"), GOOD)
def test_good_values(name: str, value: Json, signature: str, sent: object) -> None:
    (converted,) = TYPES.convert({name: value})
    assert converted == (name, signature, sent)
    assert type(converted.value) is type(sent)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values(name: str, value: Json) -> None:
    with pytest.raises(InvalidProperty) as caught:
        TYPES.convert({"After": ["x.service"], name: value})
    assert caught.value.property == name
    assert caught.value.reason


def test_the_message_locates_the_value() -> None:
    with pytest.raises(InvalidProperty, match=r"\[1\]\[1\] is not an integer"):
        TYPES.convert({"IODeviceWeight": [["/dev/a", 1], ["/dev/b", "x"]]})
    with pytest.raises(InvalidProperty, match=r"\.b is not an integer"):
        TYPES.convert({"Map": {"a": 1, "b": "x"}})


@pytest.mark.parametrize("name", ["Nonsense", "", "description", "Foreign", "StandardOutputFile", "\0"])
def test_properties_that_do_not_exist(name: str) -> None:
    with pytest.raises(NoSuchProperty) as caught:
        TYPES.convert({"Delegate": True, name: 5})
    assert caught.value.property == name
    with pytest.raises(NoSuchProperty):
        TYPES.interface(name)


def test_the_order_is_kept() -> None:
    assert [each.name for each in TYPES.convert({"TasksMax": 1, "Delegate": True, "After": []})] == [
        "TasksMax",
        "Delegate",
        "After",
    ]


def test_interfaces() -> None:
    assert TYPES.interface("Description") == "org.freedesktop.systemd1.Unit"
    assert TYPES.interface("TasksMax") == "org.freedesktop.systemd1.Scope"
    with pytest.raises(NoSuchProperty):
        TYPES.interface("User")  # can be set, not read


@pytest.mark.parametrize(
    "properties",
    [
        {f"P{n}": 1 for n in range(PROPERTIES_MAX + 1)},
        {"After": ["x"] * ELEMENTS_MAX},
        {"AllowedCPUs": [0] * ELEMENTS_MAX},
        {"Description": "x" * (TEXT_MAX + 1)},
        {"After": ["x" * (TEXT_MAX // 2), "x" * (TEXT_MAX // 2), "x"]},
    ],
    ids=["names", "elements", "bytes", "text", "texts"],
)
def test_what_is_too_large(properties: dict[str, Json]) -> None:
    with pytest.raises(InvalidProperty, match="more than"):
        TYPES.convert(properties)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(sorted(TYPES.settable)), json_values)
def test_any_json_is_converted_or_refused_by_name(name: str, value: Json) -> None:
    blamed = name
    try:
        (converted,) = TYPES.convert({name: value})
    except InvalidProperty as exc:
        blamed = exc.property
    else:
        assert (converted.name, converted.signature) == (name, TYPES.settable[name])
    assert blamed == name


@pytest.mark.parametrize(
    ("signature", "value", "json"),
    [
        ("t", 2**64 - 1, None), ("t", 5, 5), ("u", 2**32 - 1, 2**32 - 1), ("b", True, True), ("s", "ü", "ü"),
        ("ay", b"\x01\xff", [1, 255]), ("as", ["a"], ["a"]), ("a(st)", [("a", 2**64 - 1)], [["a", None]]),
        ("(bas)", (True, ["a"]), [True, ["a"]]), ("a{st}", {"a": 1}, {"a": 1}), ("a{ut}", {7: 1}, {"7": 1}),
        ("v", ("t", 2**64 - 1), None), ("d", float("nan"), None), ("d", 0.5, 0.5), ("o", "/a", "/a"),
        ("a(iayu)", [(2, b"\0\0\0\0", 0)], [[2, [0, 0, 0, 0], 0]]),
    ],
)  # fmt: skip
def test_back_to_json(signature: str, value: object, json: Json) -> None:
    assert to_json(signature, value) == json


@pytest.mark.parametrize(
    "text",
    [
        "", "<node>", "nonsense", "<node/>" * 2, "\0", "x" * (INTROSPECTION_MAX + 1),
        '<!DOCTYPE n [<!ENTITY a "b">]><node>&a;</node>',
        '<node><interface name="org.freedesktop.systemd1.Unit"><property name="X" type="a{"/></interface></node>',
    ],
    ids=range(8),
)  # fmt: skip
def test_bad_introspection(text: str) -> None:
    with pytest.raises(ValueError, match=r"introspection|dictionary"):
        UnitProperties.from_introspection(text, 262)
