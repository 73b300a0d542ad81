"""The rights of a process, as it gives them up (capabilities(7)). Only the standard library, as programs here have."""

import ctypes
import os
import struct
from typing import Final

CAP_CHOWN: Final = 1 << 0
CAP_DAC_OVERRIDE: Final = 1 << 1
CAP_DAC_READ_SEARCH: Final = 1 << 2
CAP_FOWNER: Final = 1 << 3
CAP_FSETID: Final = 1 << 4
CAP_KILL: Final = 1 << 5
CAP_SETGID: Final = 1 << 6
CAP_SETUID: Final = 1 << 7
CAP_NET_ADMIN: Final = 1 << 12
CAP_SYS_CHROOT: Final = 1 << 18
CAP_SYS_PTRACE: Final = 1 << 19
CAP_SYS_ADMIN: Final = 1 << 21
CAP_MKNOD: Final = 1 << 27
CAP_BPF: Final = 1 << 39

# Of linux/capability.h and linux/prctl.h.
_HEADER: Final = struct.pack("=Ii", 0x20080522, 0)  # version 3, of this process
_SETS: Final = struct.Struct("=6I")  # effective, permitted, inheritable; lower halves, upper halves
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8

_libc: Final = ctypes.CDLL(None, use_errno=True)


def last_error() -> OSError:
    """Return the error of the call to the C library that has just failed."""
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))  # of the class that its number stands for


def _checked(result: int) -> None:
    if result < 0:
        raise last_error()


def keep(capabilities: int, *, dormant: int = 0) -> None:
    """Give up all rights but some, for good.

    Args:
        capabilities: those to have, by their bits.
        dormant: those that can be had again, but have no effect now.
    """
    permitted = capabilities | dormant
    halves = [part & 0xFFFFFFFF for part in (capabilities, permitted, 0)]
    halves += [part >> 32 for part in (capabilities, permitted, 0)]
    _checked(_libc.capset(_HEADER, _SETS.pack(*halves)))


def keep_when_changing_users() -> None:
    """Let this process become another user without giving up what root may do."""
    _checked(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))


def be_closed_to_others() -> None:
    """Let nobody of the same user, or with rights in a user namespace that it will be in, look into this process."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))
