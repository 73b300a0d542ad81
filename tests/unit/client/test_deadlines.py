"""A client waits for as long as the service may take by itself, and for its answer."""

import pytest

from moorage.cli.commands import control, options
from moorage.client import methods
from moorage.configuration.settings import HOUR, SECOND
from moorage.machines import freezing


@pytest.mark.parametrize(
    ("ours", "service"),
    [
        (methods.SERVICE_SECONDS, HOUR / SECOND),
        (methods.SERVICE_SECONDS, options.SERVICE_SECONDS),
        (methods.FREEZE_SECONDS, freezing.FREEZE_SECONDS),
        (methods.FREEZE_SECONDS, control.FREEZE_SECONDS),
        (methods.ANSWER_SECONDS, options.ANSWER_SECONDS),
    ],
)
def test_they_are_the_same(ours: float, service: float) -> None:
    assert ours == service


@pytest.mark.parametrize(
    ("request_", "seconds"),
    [
        (methods.Describe("web"), 45),
        (methods.Kill("web", signal=9), 45),
        (methods.Register("web", class_="vm"), 3615),
        (methods.Register("web", class_="vm", timeout_usec=2_000_000), 17),
        (methods.Stop("web"), 3615),
        (methods.Stop("web", allow_interactive_authentication=True), 3915),
        (methods.Thaw("web", timeout_usec=500_000), 15.5),
    ],
)
def test_what_a_call_may_take(request_: methods.Request[object], seconds: float) -> None:
    assert request_.patience() == seconds
