"""What a helper writes to the journal is its own word, whatever names its fields have."""

import pytest
from moored import Processes, connect, register

from moorage.errors import HelperFailed

PLANTS = """
(
    trap '' TERM
    for i in $(seq 400); do
        printf 'MESSAGE=planted\\nUNIT=machine-web-a.service\\nUNIT_RESULT=oom-kill\\n' | logger --journald
    done
) &
sleep 0.3
exit 3
"""
"""Fails, and leaves a process behind that goes on after the manager's word of that."""


async def test_a_helper_cannot_plant_its_result(spawn: Processes) -> None:
    helper = {
        "name": "a",
        "type": "oneshot",
        "execStart": ["/bin/sh", "-c", PLANTS],
        "properties": {"KillMode": "process"},
    }
    async with await connect() as client:
        with pytest.raises(HelperFailed) as failure:
            await register(client, "web", spawn(), helpers=[helper])
    assert (failure.value.helper, failure.value.result) == ("a", "exit-code")
