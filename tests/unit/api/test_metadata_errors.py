"""What io.systemd.Machine answers where something about a machine cannot be had."""

import errno

import pytest

from moorage.api.refusals import translated
from moorage.api.systemd_machine import errors
from moorage.machines import metadata
from moorage.wire.errors import System


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (metadata.NotAvailable("of a VM"), errors.NotAvailable()),
        (metadata.NoPrivateNetworking("the host's"), errors.NoPrivateNetworking()),
        (metadata.NoOSRelease("no file"), errors.NoOSReleaseInformation()),
        (metadata.NoUIDShift("two ranges"), errors.NoUIDShift()),
        # For now, and not for good.
        (metadata.Unreadable("it took too long", errno.ETIMEDOUT), System.of(errno.ETIMEDOUT)),
    ],
)
def test_each_error_has_its_answer(error: metadata.MetadataError, answer: Exception) -> None:
    with pytest.raises(type(answer)) as caught, translated(errors.REFUSALS):
        raise error
    assert vars(caught.value) == vars(answer)
