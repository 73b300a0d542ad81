"""The attackers are who they are said to be: in real sessions, with the rights of their kind and no others."""

import pytest
from authority import CHALLENGED
from moored import control_group
from sessions import Session


@pytest.fixture(params=["creator", "registrant", "stranger"])
def session(request: pytest.FixtureRequest) -> Session:
    return request.getfixturevalue(request.param)


def test_a_session_is_a_real_one(session: Session) -> None:
    facts = session.facts()
    assert (facts["State"], facts["Active"], facts["Class"]) == ("active", "yes", "user")
    assert (facts["User"], facts["Service"]) == (str(session.uid), "login")
    pid = session.spawn()
    assert control_group(pid) == f"/user.slice/user-{session.uid}.slice/session-{session.id}.scope"
    session.kill(pid)
    assert session.run("id", "-u").stdout == f"{session.uid}\n"
    assert session.run("id", "-G").stdout == f"{session.uid}\n", "in no group of others"
    assert session.run("systemctl", "--user", "show", "--property=Version").status == 0, "with its manager"


def test_polkit_takes_only_who_sits_at_the_machine_for_active(
    creator: Session, registrant: Session, stranger: Session
) -> None:
    assert [each.facts().get("Seat", "") for each in (creator, registrant, stranger)] == ["", "seat0", ""]


def test_who_may_create(
    nothing_left: None, creator: Session, registrant: Session, stranger: Session
) -> None:
    leader = creator.spawn()
    reply = creator.register("web", leader)
    assert reply["parameters"]["machine"]["uid"] == creator.uid
    assert control_group(leader) == "/machine.slice/machine-web.scope"
    assert "error" not in creator.call("Stop", {"name": "web"})
    creator.kill(leader)
    for other in (registrant, stranger):
        assert other.register("web") == CHALLENGED


def test_who_may_register_in_place(
    nothing_left: None, creator: Session, registrant: Session, stranger: Session
) -> None:
    for session in (creator, registrant):
        leader = session.spawn()
        before = control_group(leader)
        reply = session.register("web", leader, allocateUnit=False)
        assert reply["parameters"]["machine"]["unit"] == f"session-{session.id}.scope"
        assert control_group(leader) == before
        assert "error" not in session.call("Forget", {"name": "web"})
        session.kill(leader)
    assert stranger.register("web", allocateUnit=False) == CHALLENGED
