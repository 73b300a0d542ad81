"""Three ordinary users in login sessions, who attack in the modules here, and one who was given the rights of root.

Each module is a part of the service's boundary, each test in it an attack and what has to come of it. The modules run
against the service as it is installed: started by its socket, under a real manager, with the real polkit. The kinds of
users are in ``sessions.py``; what each of them may reach, and why, is in ``docs/security.md``.
"""

from collections.abc import Generator

import pytest
from sessions import CREATOR, HOLDER, REGISTRANT, STRANGER, Session, add_users, log_in


@pytest.fixture(scope="session")
def _users() -> None:
    add_users(CREATOR, REGISTRANT, STRANGER, HOLDER)


@pytest.fixture(scope="session")
def creator(_users: None) -> Generator[Session]:
    """A user to whom an administrator has given ``io.moorage.create-machine``; not at the machine."""
    session = log_in(CREATOR)
    yield session
    session.end()


@pytest.fixture(scope="session")
def registrant(_users: None) -> Generator[Session]:
    """A user who sits at the machine, with what the shipped policy gives: ``io.moorage.register-machine``.

    And who was allowed to look into machines, for attacks on whoever looks.
    """
    session = log_in(REGISTRANT)
    yield session
    session.end()


@pytest.fixture(scope="session")
def stranger(_users: None) -> Generator[Session]:
    """A user who is logged in from elsewhere, with no rights at all."""
    session = log_in(STRANGER)
    yield session
    session.end()


@pytest.fixture(scope="session")
def holder(_users: None) -> Generator[Session]:
    """A user to whom an administrator has given ``io.moorage.manage-units``, and with it root."""
    session = log_in(HOLDER)
    yield session
    session.end()
