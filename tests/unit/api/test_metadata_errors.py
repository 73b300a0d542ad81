"""What io.systemd.Machine answers where something about a machine cannot be had."""

import errno

import pytest

from moorage.api.systemd_machine import handlers
from moorage.machines import metadata
from moorage.wire.errors import System


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (metadata.NotAvailable("of a VM"), handlers.NotAvailable()),
        (metadata.NoPrivateNetworking("the host's"), handlers.NoPrivateNetworking()),
        (metadata.NoOSRelease("no file"), handlers.NoOSReleaseInformation()),
        (metadata.NoUIDShift("two ranges"), handlers.NoUIDShift()),
        # For now, and not for good.
        (metadata.Unreadable("it took too long", errno.ETIMEDOUT), System.of(errno.ETIMEDOUT)),
    ],
)
def test_each_error_has_its_answer(error: metadata.MetadataError, answer: Exception) -> None:
    found = handlers._error(error)
    assert (type(found), vars(found)) == (type(answer), vars(answer))
