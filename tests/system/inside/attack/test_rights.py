"""What the system's manager does as root, it does for nobody who was given less than root's rights."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from authority import CHALLENGED, DENIED, in_service
from hostile import call
from moored import (
    OURS,
    THEIRS,
    UNTIL_SECONDS,
    Processes,
    control_group,
    directories,
    run,
    scopes,
    show,
    units,
)
from sessions import Session

HELPER: dict[str, Any] = {"name": "fs", "execStart": ["/bin/sleep", "infinity"]}
SOCKETS = {**HELPER, "sockets": [{"name": "s"}]}
ROOTS = {**HELPER, "properties": {"DynamicUser": False, "User": "root"}}
NEWLINES = {**HELPER, "properties": {"SyslogIdentifier": "x\nDynamicUser=no\nUser=root\n"}}
RELOADED = {**HELPER, "properties": {"ExecReload": [["/bin/true a ; +/bin/sh", ["/bin/sh"], False]]}}
INVALID = "org.varlink.service.InvalidParameter"


# Helpers: services of the system's manager


@pytest.mark.parametrize("helper", [HELPER, SOCKETS, ROOTS, NEWLINES, RELOADED])
def test_nobody_registers_with_helpers(
    nothing_left: None, creator: Session, registrant: Session, stranger: Session, helper: Any
) -> None:
    for session in (creator, registrant, stranger):
        leader = session.spawn()
        before = control_group(leader)
        for dry in (True, False):
            assert session.register("web", leader, helpers=[helper], dryRun=dry) == CHALLENGED
            in_place = session.register("web", leader, helpers=[helper], dryRun=dry, allocateUnit=False)
            assert (in_place["error"], in_place["parameters"]) == (INVALID, {"parameter": "helpers"})
        assert (units(), directories(), control_group(leader)) == ([], [], before)
        session.kill(leader)


def test_nobody_changes_the_helpers_of_ones_own_machine(
    everything_gone: None, creator: Session, registrant: Session
) -> None:
    for session, place in ((creator, True), (creator, False), (registrant, False)):
        leader = session.spawn()
        assert "error" not in session.register("target", leader, allocateUnit=place)
        before = units()
        for helper in (HELPER, SOCKETS, ROOTS, NEWLINES, RELOADED):
            assert session.call("AddHelpers", {"name": "target", "helpers": [helper]}) == CHALLENGED
        assert session.call("RemoveHelper", {"name": "target", "helper": "fs"}) == CHALLENGED
        assert session.call("Reload", {"name": "target"}) == CHALLENGED
        assert (units(), directories()) == (before, [])
        assert "error" not in session.call("Forget", {"name": "target"})
        session.kill(leader)


def test_root_puts_no_helpers_into_the_hands_of_a_user(
    everything_gone: None, creator: Session, registrant: Session, holder: Session
) -> None:
    # Their directory would be the user's, and their names the user's to choose.
    for session, place in ((creator, True), (registrant, False)):
        leader = session.spawn()
        assert "error" not in session.register("target", leader, allocateUnit=place)
        more = {"name": "target", "helpers": [SOCKETS]}
        for reply in (call(f"{OURS}AddHelpers", more), holder.call("AddHelpers", more)):
            assert reply is not None
            assert (reply["error"], reply["parameters"]["what"]) == (f"{OURS}NotSupported", "helpers")
        assert directories() == []
        assert "error" not in session.call("Forget", {"name": "target"})
        session.kill(leader)


# Scopes


@pytest.mark.parametrize(
    ("more", "blamed"),
    [
        ({"properties": {"User": "root"}}, "User"),
        ({"properties": {"MemoryMax": 2**30, "MemoryMin": 2**30}}, "MemoryMin"),
        ({"properties": {"KillMode": "none"}}, "KillMode"),
        ({"properties": {"KillMode": "process"}}, "KillMode"),
        ({"properties": {"TimeoutStopUSec": 0}}, "TimeoutStopUSec"),
        ({"properties": {"TimeoutStopUSec": "infinity"}}, "TimeoutStopUSec"),
        ({"properties": {"TasksMaxScale": 2**32 - 1}}, "TasksMaxScale"),
        ({"properties": {"BindsTo": ["dbus.service"]}}, "BindsTo"),
        ({"properties": {"MemoryMax": True}}, "MemoryMax"),
        ({"properties": {"NoSuchThing": 1}}, "NoSuchThing"),
        ({"slice": "system.slice"}, "Slice"),
        ({"slice": "user-0.slice"}, "Slice"),
        ({"slice": "user-2003.slice"}, "Slice"),
        ({"slice": "machine-mine.slice"}, "Slice"),
    ],
)  # fmt: skip
def test_a_scope_has_nothing_that_root_alone_may_give(
    nothing_left: None,
    creator: Session,
    registrant: Session,
    stranger: Session,
    more: dict[str, Any],
    blamed: str,
) -> None:
    leader = creator.spawn()
    before = control_group(leader)
    for dry in (True, False):
        reply = creator.register("web", leader, dryRun=dry, **more)
        assert (reply["error"], reply["parameters"]["property"]) == (f"{OURS}InvalidProperty", blamed)
    assert (scopes(), control_group(leader)) == ([], before)
    creator.kill(leader)
    for session in (registrant, stranger):
        assert session.register("web", **more) == CHALLENGED
        # Of a unit that is there already nothing can be set.
        assert session.register("web", allocateUnit=False, **more)["error"] == INVALID


# Processes and units of others


def test_processes_of_others_are_not_moved(
    spawn: Processes, creator: Session, registrant: Session, stranger: Session
) -> None:
    not_received = {
        "error": "org.varlink.service.InvalidParameter",
        "parameters": {"parameter": "leaderFileDescriptor"},
    }
    roots, strangers = spawn(), stranger.spawn()
    for uid, pid in ((0, roots.pid), (stranger.uid, strangers)):
        before = control_group(pid)
        answer = {"error": f"{OURS}ProcessNotOwned", "parameters": {"pid": pid, "uid": uid}}
        for session, places in ((creator, (True, False)), (registrant, (False,))):
            for place in places:
                assert session.register("web", pid, allocateUnit=place) == answer
                pidfd = os.pidfd_open(pid)
                by_fd = {"name": "web", "class": "vm", "leaderFileDescriptor": 0, "allocateUnit": place}
                # File descriptors are received from root only. Linux 6.16 does not even let users send any, once the
                # service has accepted the connection.
                with contextlib.suppress(PermissionError):
                    assert session.call("Register", by_fd, [pidfd]) == not_received
                os.close(pidfd)
            named = {"name": "web", "class": "vm", "leader": pid}
            assert session.call(f"{THEIRS}Register", named) in (DENIED, CHALLENGED)
        assert control_group(pid) == before
    assert scopes() == []
    stranger.kill(strangers)


def test_processes_are_not_taken_out_of_units_of_others(
    nothing_left: None, creator: Session, registrant: Session
) -> None:
    # A service that runs jobs for users, as cron does, is none of theirs (systemd issue 26925).
    for session, places in ((creator, (True, False)), (registrant, (False,))):
        command = ("setpriv", f"--reuid={session.uid}", f"--regid={session.uid}", "--clear-groups")
        pid = in_service(session.uid, "test-jobs", argv=(*command, "sleep", "infinity"))
        before = control_group(pid)
        for place in places:
            answer = {"error": f"{OURS}UnitNotOwned", "parameters": {"unit": "test-jobs.service"}}
            assert session.register("web", pid, allocateUnit=place) == answer
        assert control_group(pid) == before
        run("systemctl", "stop", "test-jobs.service")
    assert scopes() == []


# Whoever is root


def test_whoever_has_manage_units_is_treated_as_root_is(
    everything_gone: None, spawn: Processes, holder: Session
) -> None:
    theirs = spawn()
    reply = holder.register(
        "web", theirs.pid, slice="system.slice", properties={"MemoryMin": 4096}, helpers=[ROOTS]
    )
    machine = reply["parameters"]["machine"]
    assert (machine["uid"], machine["slice"]) == (holder.uid, "system.slice")
    helper = machine["helpers"][0]["mainProcess"]["pid"]
    assert Path(f"/proc/{helper}").stat().st_uid == 0, "there is no use in pretending otherwise"
    assert show("machine-web.scope", "MemoryMin")["MemoryMin"] == "4096"
    more = {"name": "web", "helpers": [{**HELPER, "name": "more"}]}
    assert "error" not in holder.call("AddHelpers", more)
    assert "error" not in holder.call("Reload", {"name": "web"})
    assert "error" not in holder.call("RemoveHelper", {"name": "web", "helper": "more"})
    assert "error" not in holder.call("Stop", {"name": "web"})
    assert theirs.wait(UNTIL_SECONDS) == -15


def test_whoever_has_manage_units_may_take_a_process_out_of_any_unit(
    everything_gone: None, holder: Session
) -> None:
    command = ("setpriv", f"--reuid={holder.uid}", f"--regid={holder.uid}", "--clear-groups")
    pid = in_service(holder.uid, "test-jobs", argv=(*command, "sleep", "infinity"))
    assert "error" not in holder.register("web", pid)
    assert control_group(pid) == "/machine.slice/machine-web.scope"
    assert "error" not in holder.call("Stop", {"name": "web"})
