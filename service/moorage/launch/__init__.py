"""A launcher's side of the work: hold a process until it is registered, and keep its lease."""

from moorage.launch.payload import (
    BadCommand,
    HolderGone,
    Payload,
    StartFailed,
    hold,
    keep_lease,
)

__all__ = ["BadCommand", "HolderGone", "Payload", "StartFailed", "hold", "keep_lease"]
