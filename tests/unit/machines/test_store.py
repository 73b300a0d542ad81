"""Records on disk: everything comes back, and whatever lies there does not get further than it should."""

import os
import resource
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.kernel.process import ProcessId, boot_id
from moorage.machines import model, store, texts
from moorage.machines.accounting import COUNTERS, Accounting
from moorage.machines.helpers.units import Change
from moorage.machines.intents import Intents, encode_change
from moorage.machines.looking import DEVICES_MAX
from moorage.machines.model import (
    Bases,
    Cause,
    End,
    Helper,
    HelperBase,
    HelperEnd,
    HelperFailure,
    Identity,
    Intent,
    MachineClass,
    Origin,
    Placement,
    Record,
    Timestamp,
    Verdict,
    Wanted,
)
from moorage.machines.store import BadRecord, Store, decode, decode_intent, encode, encode_intent
from moorage.pid1 import journal

VERDICT = Verdict(
    "oom-kill", Timestamp(10, 11), oom_killed=True,
    accounting=Accounting(
        cpu_usage_nsec=12, memory_current=13, memory_peak=14, memory_swap_current=15, tasks_current=16,
        io_read_bytes=17, io_write_bytes=18, io_read_operations=19, io_write_operations=20, ip_ingress_bytes=22,
        ip_egress_bytes=23, oom_kills=21, managed_oom_kills=24, cpu_user_nsec=27, cpu_system_nsec=28,
        cpu_throttled_nsec=29, memory_swap_peak=30, tasks_peak=31, ip_ingress_packets=32, ip_egress_packets=33,
    ),
    cause=Cause.helper_ended, leader_status=25, leader_signal=26, helper="fs", helper_result="exit-code",
    log=("one", "two"),
)  # fmt: skip

FULL = Record(
    name="web", class_=MachineClass.container, registrant=1000,
    placement=Placement(
        "machine-web.scope", "/payload", "machine-a.slice", "/machine.slice/machine-web.scope/payload", 2**40,
        "1" * 32, shared=True,
    ),
    allocated=True, leader=ProcessId(2, 3, "2" * 32), supervisor=ProcessId(4, 5, "3" * 32),
    identity=Identity("4" * 32, "a service", "/root", (1, 2), 7, "vsock/7", "/key", "/control"),
    timestamp=Timestamp(8, 9), leader_uid=1001, runtime_directory="/run/moorage/m/web", lease=True, privileged=True,
    asked=Cause.stopped, insist_by=41, lost=HelperEnd("fs", "signal"), late=True,
    bases=Bases(
        Timestamp(34, 35), Accounting(cpu_usage_nsec=36, io_read_bytes=37), {"8:0": {"readBytes": 38}},
        {"fs": HelperBase(39, Accounting(cpu_usage_nsec=40))},
    ),
    request={"slice": "0123456789abcdef"}, origin=Origin.adopted,
    helpers=(Helper("fs", "machine-web-fs.service", HelperFailure.stop_machine, ("fs.sock", "other")),),
    end=End(Timestamp(42, 43), "signal", True, True, True, Accounting(cpu_usage_nsec=44), True),
    verdict=VERDICT,
)  # fmt: skip
"""A machine of which no field is at its default."""

WANTED: dict[str, Any] = {field: getattr(FULL, field) for field in Wanted.__struct_fields__}

BEGUN = Intent(**WANTED, slice="machine.slice", start_by=22)
"""The same before it has its place."""

LEAST = Record(
    name="a", class_=MachineClass.vm, registrant=0, placement=Placement("a.service", control_group="/a"),
    allocated=False, leader=None, supervisor=None, timestamp=Timestamp(0, 0),
)  # fmt: skip


def test_the_full_machine_is_full() -> None:
    for part in (FULL, FULL.identity, FULL.placement):
        for field in msgspec.structs.fields(type(part)):
            assert getattr(part, field.name) not in (None, {}, field.default), field.name


@pytest.mark.parametrize("field", Record.__struct_fields__)
def test_every_field_comes_back(field: str) -> None:
    assert getattr(decode(encode(FULL), "web"), field) == getattr(FULL, field)
    assert getattr(decode(encode(LEAST), "a"), field) == getattr(LEAST, field)


def test_the_stored_form_has_the_fields_of_the_model_and_two_more() -> None:
    parts = (Record, Intent, Identity, Placement)
    fields = {field for part in parts for field in part.__struct_fields__} - {
        "identity",
        "placement",
        "revoked",
    }
    assert set(store.StoredMachine.__struct_fields__) == {*fields, "version", "boot_id", "phase"}


TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTS = st.integers(0, 2**63 - 1)
IDS = st.none() | st.builds(ProcessId, INTS, st.none() | INTS, st.none() | st.just("a" * 32))
HELPERS = st.lists(
    st.builds(
        Helper,
        st.text(max_size=9),
        st.text(max_size=9),
        st.sampled_from(HelperFailure),
        st.tuples(st.text(max_size=9)),
    ),
    max_size=3,
)
TIMES = st.builds(Timestamp, INTS, INTS)
COUNTS = st.builds(Accounting, *[st.none() | INTS] * len(Accounting.__struct_fields__))
VERDICTS = st.builds(
    Verdict, st.sampled_from(["success", "oom-kill"]), TIMES, st.none() | st.booleans(), COUNTS,
    st.none() | st.sampled_from(Cause), st.none() | INTS, st.none() | INTS, TEXTS, TEXTS,
    st.lists(st.text(max_size=9), max_size=3).map(tuple),
)  # fmt: skip
BASES = st.builds(
    Bases, TIMES, COUNTS,
    st.none() | st.dictionaries(st.just("8:0"), st.dictionaries(st.just("readBytes"), INTS), max_size=1),
    st.dictionaries(st.text(max_size=9), st.builds(HelperBase, INTS, COUNTS), max_size=2),
)  # fmt: skip
PATHS = st.from_regex(r"(/[a-z☃\\]{1,9}){1,3}", fullmatch=True)
PLACEMENTS = st.builds(
    Placement,
    st.text(max_size=9),
    TEXTS,
    st.text(max_size=9),
    PATHS,
    INTS,
    st.text(max_size=9),
    st.booleans(),
)
IDENTITIES = st.builds(
    Identity, TEXTS, TEXTS, TEXTS, st.lists(INTS, max_size=4).map(tuple), INTS, TEXTS, TEXTS, TEXTS
)
WISHES: dict[str, st.SearchStrategy[Any]] = {
    "name": st.just("web"), "class_": st.sampled_from([MachineClass.vm, MachineClass.container]), "registrant": INTS,
    "allocated": st.booleans(), "leader": IDS, "supervisor": IDS, "identity": IDENTITIES, "timestamp": TIMES,
    "leader_uid": INTS, "runtime_directory": TEXTS, "helpers": HELPERS.map(tuple), "lease": st.booleans(),
    "request": st.dictionaries(st.sampled_from(["slice", "class"]), st.text(max_size=16)),
}  # fmt: skip
RECORDS = st.builds(
    Record, **WISHES, placement=PLACEMENTS, asked=st.none() | st.sampled_from(Cause),
    insist_by=st.none() | INTS, late=st.booleans(),
    bases=st.none() | BASES, verdict=st.none() | VERDICTS,
)  # fmt: skip


@given(RECORDS)
def test_any_record_comes_back(record: Record) -> None:
    stored = encode(record)
    assert decode(stored, "web") == record
    assert len(stored) <= store.RECORD_MAX


@given(st.builds(Intent, **WISHES, slice=st.text(max_size=9), start_by=INTS, revoked=st.booleans()))
def test_any_intent_comes_back(intent: Intent) -> None:
    assert decode_intent(encode_intent(intent), "web") == intent


def test_the_largest_record_is_small_enough() -> None:
    text = "\N{SNOWMAN}" * texts.TEXT_MAX
    counters = Accounting(**dict.fromkeys(COUNTERS, 2**63))
    traffic = dict.fromkeys(
        ("readBytes", "writeBytes", "readOperations", "writeOperations", "discardBytes"), 2**63
    )
    machine = msgspec.structs.replace(
        FULL,
        bases=Bases(
            Timestamp(2**63, 2**63),
            counters,
            {f"4095:{number}": traffic | {"discardOperations": 2**63} for number in range(DEVICES_MAX)},
            {f"{number:064}": HelperBase(2**63, counters) for number in range(model.HELPERS_MAX)},
        ),
        identity=Identity("4" * 32, text, text, (2**31 - 1,) * model.IF_INDICES_MAX, 7, text, text, text),
        verdict=msgspec.structs.replace(VERDICT, log=("\a" * journal.LINE_MAX,) * journal.LINES_MAX),
    )
    assert len(encode(machine)) <= store.RECORD_MAX


def test_a_record_cut_at_any_byte_is_bad() -> None:
    record = encode(FULL)
    for length in range(len(record)):
        with pytest.raises(BadRecord):
            decode(record[:length], "web")


@given(st.binary(max_size=200))
def test_random_bytes_are_a_bad_record(data: bytes) -> None:
    with pytest.raises(BadRecord):
        decode(data, "web")


@given(data=st.data())
def test_a_damaged_record_is_bad_or_a_machine_of_that_name(data: st.DataObject) -> None:
    record = bytearray(encode(FULL))
    for _ in range(data.draw(st.integers(1, 4))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    try:
        machine = decode(bytes(record), "web")
    except BadRecord:
        return
    assert machine.name == "web"


def changed(**fields: Any) -> bytes:
    stored = msgspec.json.decode(encode(FULL))
    return msgspec.json.encode({**stored, **fields})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (changed(version=store.VERSION + 1), "newer"),
        (changed(boot_id="0" * 32), "another boot"),
        (changed(name="other"), "machine 'other'"),
        (changed(phase="running"), "do not agree"),
        (changed(verdict=None), "do not agree"),
        (changed(uid="0"), "uid"),
        (changed(class_="horse"), "class_"),
        (changed(leader={"pid": 1}), "leader"),
        (changed(timestamp=None), "timestamp"),
        (changed(control_group=""), "control group"),
        (changed(control_group="machine.slice"), "control group"),
        (changed(control_group="/a/../b"), "control group"),
        (changed(control_group="/a\0b"), "control group"),
        (changed(control_group="/" + "a" * 256), "control group"),
        (changed(control_group="/a" * 2001), "control group"),
        (b"[" * 100_000, "array"),
        (b'{"name":' * 100_000, "name"),
        (changed(more=None)[:-1] + b',"x":' + b"[" * 100_000, "recursion"),
        (b"", "truncated"),
        (b"null", "null"),
    ],
)
def test_a_record_that_cannot_be_used(record: bytes, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        decode(record, "web")


@pytest.mark.parametrize("field", store.StoredMachine.__struct_fields__)
def test_every_field_without_a_default_is_needed(field: str) -> None:
    stored = msgspec.json.decode(encode(LEAST))
    if field not in stored:
        return
    del stored[field]
    with pytest.raises(BadRecord, match=field):
        decode(msgspec.json.encode(stored), "a")


def test_a_field_of_a_later_minor_change_is_ignored() -> None:
    assert decode(changed(colour="blue"), "web") == FULL


# Other versions


GOLDEN = Path(__file__).parent / "records"
"""A record of the machine FULL as each version wrote it, for ever; "BOOT" stands for the boot."""


def golden(version: int) -> bytes:
    return (GOLDEN / f"{version}.json").read_bytes().replace(b"BOOT", boot_id().encode())


@pytest.mark.parametrize("version", range(1, store.VERSION + 1))
def test_records_of_each_version_are_read_as_they_were_meant(version: int) -> None:
    stored = msgspec.json.decode(golden(version))
    assert stored["version"] == version
    found, expected = (
        msgspec.json.decode(encode(record)) for record in (decode(golden(version), "web"), FULL)
    )
    for name in stored.keys() - {"version", "verdict", "start_by"}:
        assert found[name] == expected[name], name
    verdict = decode(golden(version), "web").verdict
    assert verdict is not None
    for name, value in msgspec.structs.asdict(VERDICT).items():
        if name != "accounting" and name in stored["verdict"]:
            assert getattr(verdict, name) == value
    for name, value in msgspec.structs.asdict(verdict.accounting).items():
        assert value == stored["verdict"]["accounting"].get(name)


def test_that_nothing_was_killed_is_not_believed_of_older_versions() -> None:
    stored = msgspec.json.decode(golden(2))
    stored["verdict"]["oom_killed"] = False
    verdict = decode(msgspec.json.encode(stored), "web").verdict
    assert verdict is not None
    assert verdict.oom_killed is None


def test_a_change_of_the_form_is_a_new_version() -> None:
    """One that is downgraded to must be able to refuse what it does not know: by the number, not by luck.

    After a change of Record: raise VERSION, and put what FULL is encoded to beside the other records.
    """
    assert msgspec.json.decode(encode(FULL)) == msgspec.json.decode(golden(store.VERSION))


# The directory


@pytest.fixture
def intents(records: Store) -> Intents:
    return Intents(records)


@pytest.fixture
def records(tmp_path: Path) -> Generator[Store]:
    opened = Store(str(tmp_path / "machines"))
    yield opened
    opened.close()


def names(records: Store) -> list[str]:
    return sorted(os.listdir(records.path))


def test_saved_is_loaded_until_it_is_removed(records: Store) -> None:
    records.save(FULL)
    records.save(LEAST)
    loaded = dict(records.load())
    assert sorted(loaded) == ["a", "web"]
    assert isinstance(found := loaded["web"], Record)
    assert found == FULL
    records.save(msgspec.structs.replace(FULL, registrant=5))
    assert names(records) == ["a", "web"]
    records.remove("web")
    records.remove("web")
    assert [name for name, _ in records.load()] == ["a"]
    assert (Path(records.path) / "a").stat().st_mode & 0o777 == 0o600
    assert Path(records.path).stat().st_mode & 0o777 == 0o700


def test_what_a_crash_left_is_tidied_up(records: Store) -> None:
    records.save(LEAST)
    (Path(records.path) / ".new-web").write_bytes(encode(FULL)[:20])
    assert [name for name, _ in records.load()] == ["a"]
    assert names(records) == ["a"]


def test_an_intent_is_no_record_and_is_read_until_it_is_withdrawn(records: Store, intents: Intents) -> None:
    intents.intend(BEGUN)
    records.save(LEAST)
    assert [name for name, _ in records.load()] == ["a"]
    ((name, found),) = intents.starts()
    assert name == "web"
    assert isinstance(found, Intent)
    assert found == BEGUN
    intents.revoke(BEGUN)
    ((_, found),) = intents.starts()
    assert isinstance(found, Intent)
    assert found.revoked
    intents.withdraw("web")
    intents.withdraw("web")
    assert list(intents.starts()) == []
    assert names(records) == ["a"]


def test_an_intent_that_is_not_whole_was_never_followed_by_a_start(records: Store, intents: Intents) -> None:
    whole = encode_intent(BEGUN)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (Path(records.path) / ".start-web").write_bytes(whole[:length])
        ((name, found),) = intents.starts()
        assert name == "web"
        assert isinstance(found, BadRecord)
        assert names(records) == []


def test_an_intent_has_no_place_and_a_record_has(records: Store, intents: Intents) -> None:
    living = msgspec.structs.replace(FULL, verdict=None)
    (Path(records.path) / ".start-web").write_bytes(encode(living))
    ((_, found),) = intents.starts()
    assert isinstance(found, BadRecord)
    (Path(records.path) / "web").write_bytes(encode_intent(BEGUN))
    ((_, found),) = records.load()
    assert isinstance(found, BadRecord)


def test_an_intent_that_cannot_be_written_leaves_nothing(records: Store, intents: Intents) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # a short write, as on a full disk
    try:
        with pytest.raises(OSError, match="space"):
            intents.intend(BEGUN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(records) == []


CHANGE = Change("web", "1" * 32, Timestamp(8, 9), FULL.helpers, removes=True, with_place=True)


def test_the_intent_of_a_change_is_neither_a_record_nor_that_of_a_start(
    records: Store, intents: Intents
) -> None:
    intents.intend(BEGUN)
    intents.intend_change(CHANGE)
    records.save(LEAST)
    assert [name for name, _ in records.load()] == ["a"]
    assert [name for name, _ in intents.starts()] == ["web"]
    assert list(intents.changes()) == [("web", CHANGE)]
    intents.withdraw_change(CHANGE)
    intents.withdraw_change(CHANGE)
    assert list(intents.changes()) == []
    assert names(records) == [".start-web", "a"]


def test_a_machine_may_have_several_changes(records: Store, intents: Intents) -> None:
    later = msgspec.structs.replace(CHANGE, timestamp=Timestamp(8, 10))
    intents.intend_change(CHANGE)
    intents.intend_change(later)
    assert sorted((found for _, found in intents.changes()), key=str) == sorted([CHANGE, later], key=str)
    intents.withdraw_change(later)
    assert list(intents.changes()) == [("web", CHANGE)]


def test_a_change_of_a_version_before_is_withdrawn_as_well(records: Store, intents: Intents) -> None:
    (Path(records.path) / ".change-web").write_bytes(encode_change(CHANGE))
    assert list(intents.changes()) == [("web", CHANGE)]
    intents.withdraw_change(CHANGE)
    assert names(records) == []


def test_the_intent_of_a_change_that_is_not_whole_was_never_followed_by_one(
    records: Store, intents: Intents
) -> None:
    whole = encode_change(CHANGE)
    bad = [whole[:length] for length in range(len(whole))]
    bad += [
        encode_change(msgspec.structs.replace(CHANGE, machine="other")),
        whole.replace(boot_id().encode(), b""),
    ]
    for content in bad:
        (Path(records.path) / ".change-web").write_bytes(content)
        ((name, found),) = intents.changes()
        assert name == "web"
        assert isinstance(found, BadRecord)
        assert names(records) == []


def test_what_is_left_of_a_machine_that_was_forgotten_is_no_record(records: Store) -> None:
    records.save(LEAST)
    records.leave(LEAST)
    records.remove("a")
    assert list(records.load()) == []
    ((name, found),) = records.left()
    assert name == "a"
    assert isinstance(found, Record)
    assert found == LEAST
    records.vacate("a")
    records.vacate("a")
    assert names(records) == []


def test_units_of_a_change_have_a_mark_of_their_own(intents: Intents) -> None:
    later = msgspec.structs.replace(CHANGE, timestamp=Timestamp(8, 10))
    assert len({intents.mark(CHANGE), intents.mark(later)}) == 2
    assert all(intents.mark(each).startswith(intents.marks_of("web")) for each in (CHANGE, later))
    assert not intents.mark(CHANGE).startswith(intents.marks_of("we"))


def test_a_mark_is_an_address_that_tells_two_starts_apart(records: Store, intents: Intents) -> None:
    later = msgspec.structs.replace(BEGUN, timestamp=Timestamp(8, 10))
    assert intents.mark(BEGUN) == f"file:{records.path}/web#9"
    assert intents.mark(later) != intents.mark(BEGUN)
    assert intents.mark(BEGUN).startswith(intents.marks)


def test_what_does_not_belong_there_is_reported_and_the_rest_loaded(records: Store, tmp_path: Path) -> None:
    directory = Path(records.path)
    records.save(FULL)
    (directory / "cut").write_bytes(encode(FULL)[:-1])
    (directory / "renamed").write_bytes(encode(FULL))
    (directory / "empty").touch()
    (directory / "huge").write_bytes(b" " * (store.RECORD_MAX + 1))
    (directory / "bad name").write_bytes(encode(FULL))
    (directory / "directory").mkdir()
    os.mkfifo(directory / "fifo")
    (tmp_path / "elsewhere").write_bytes(encode(msgspec.structs.replace(FULL, name="link")))
    (directory / "link").symlink_to(tmp_path / "elsewhere")
    (directory / "dangling").symlink_to("/nowhere")
    before = names(records)
    loaded = dict(records.load())
    assert sorted(loaded) == before
    assert {name for name, found in loaded.items() if isinstance(found, Record)} == {"web"}
    assert names(records) == before, "nothing of it is touched"


def test_a_directory_that_is_a_link_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(OSError, match="link"):
        Store(str(tmp_path / "link"))


def test_a_record_that_cannot_be_written_leaves_the_old_one(records: Store) -> None:
    records.save(FULL)
    before = (Path(records.path) / "web").read_bytes()
    (Path(records.path) / ".new-web").symlink_to("/nowhere")
    with pytest.raises(OSError, match="symbolic"):
        records.save(msgspec.structs.replace(FULL, registrant=7))
    assert (Path(records.path) / "web").read_bytes() == before


def test_a_record_is_of_this_boot() -> None:
    assert msgspec.json.decode(encode(FULL))["boot_id"] == boot_id()


def test_a_record_that_cannot_be_opened_for_now_is_not_taken_for_a_bad_one(records: Store) -> None:
    for name in ("a", "b"):
        records.save(msgspec.structs.replace(LEAST, name=name))
    found = records.load()
    assert next(found)[0] == "a"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            next(found)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
