"""The host as a machine, which machined always lists as ``.host``."""

from __future__ import annotations

import functools
from pathlib import Path

from moorage.kernel import process
from moorage.kernel.clock import SystemClock
from moorage.machines import model
from moorage.machines.final_account import now
from moorage.machines.machine import Machine

HOST = ".host"
"""Name of the host among the machines."""


@functools.cache
def host() -> Machine:
    """Return the host (``manager_add_host_machine()``). It is in no registry."""
    present = now(SystemClock())
    return Machine(
        model.Record(
            name=HOST,
            class_=model.MachineClass.host,
            registrant=0,
            placement=model.Placement("-.slice", control_group="/", control_group_id=1),
            allocated=False,
            leader=process.identify(1),
            supervisor=None,
            identity=model.Identity(
                id=Path("/etc/machine-id").read_text(encoding="ascii").strip(),
                root_directory="/",
                # VMADDR_CID_LOCAL, which is the same on every host.
                vsock_cid=1 if Path("/dev/vsock").exists() else None,
            ),
            timestamp=model.Timestamp(present.realtime - present.monotonic, 0),
        )
    )
