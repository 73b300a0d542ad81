"""Who may do what, row by row of the policy's table."""

import pytest

from moorage.authz.policy import Action, Policy

ROOT, ALICE, BOB = 0, 1000, 1001


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize(
    ("user", "uid", "allowed"),
    [
        (None, ROOT, True),
        (None, ALICE, False),
        (None, 65534, False),
        (None, 2**32 - 1, False),
        (ALICE, ROOT, True),
        (ALICE, ALICE, True),
        (ALICE, BOB, False),
        (ALICE, 2**32 - 1, False),
        (ROOT, ROOT, True),
        (ROOT, ALICE, False),
    ],
)
def test_actions(action: Action, user: int | None, uid: int, allowed: bool) -> None:
    assert Policy(user).allows(action, uid) is allowed


@pytest.mark.parametrize(
    ("user", "uid", "process_uid", "allowed"),
    [
        (None, ROOT, ROOT, True),
        (None, ROOT, ALICE, True),
        (None, ALICE, ALICE, False),
        (ALICE, ALICE, ALICE, True),
        (ALICE, ALICE, ROOT, False),
        (ALICE, ALICE, BOB, False),
        (ALICE, BOB, BOB, False),
        (ALICE, BOB, ALICE, False),
        (ALICE, ROOT, BOB, True),
    ],
)
def test_processes(user: int | None, uid: int, process_uid: int, allowed: bool) -> None:
    assert Policy(user).may_claim(uid, process_uid) is allowed
