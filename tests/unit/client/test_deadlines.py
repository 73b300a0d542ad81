"""A client waits for as long as the service may take by itself, and for its answer."""

import pytest

from moorage.cli.commands import control, machine, options
from moorage.client import methods
from moorage.machines import control as stopping
from moorage.machines import freezing, registration
from moorage.machines.helpers import changing


@pytest.mark.parametrize(
    ("ours", "service"),
    [
        (methods.REGISTER_SECONDS, registration.REGISTER_SECONDS),
        (methods.STOP_SECONDS, stopping.STOP_SECONDS),
        (methods.FREEZE_SECONDS, freezing.FREEZE_SECONDS),
        (methods.HELPERS_SECONDS, changing.HELPERS_SECONDS),
        (methods.STOP_SECONDS, control.STOP_SECONDS),
        (methods.REGISTER_SECONDS, machine.REGISTER_SECONDS),
        (methods.ANSWER_SECONDS, options.ANSWER_SECONDS),
    ],
)
def test_they_are_the_same(ours: float, service: float) -> None:
    assert ours == service


@pytest.mark.parametrize(
    ("request_", "seconds"),
    [
        (methods.Describe("web"), 45),
        (methods.Register("web", class_="vm"), 45),
        (methods.Register("web", class_="vm", timeout_usec=2_000_000), 17),
        (methods.Stop("web"), 215),
        (methods.Stop("web", allow_interactive_authentication=True), 515),
        (methods.Thaw("web", timeout_usec=500_000), 15.5),
    ],
)
def test_what_a_call_may_take(request_: methods.Request[object], seconds: float) -> None:
    assert request_.patience() == seconds
