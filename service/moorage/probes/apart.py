"""A thread that enters a machine for a task, and ends, while the child that it is of stays outside and may do more.

What the thread enters is its own alone: namespaces are those of a thread (setns(2)), and of root directory and working
directory it has copies. So it is for tasks only that read nothing that is of a guest: the memory is the child's.

Only the standard library and what is as plain: it is run without site-packages.
"""

import _thread
import ctypes
import sys
from collections.abc import Callable
from typing import Final, TypeVar

from moorage.probes.capabilities import last_error

T = TypeVar("T")

_CLONE_FS: Final = 0x200  # of linux/sched.h

_libc: Final = ctypes.CDLL(None, use_errno=True)


def in_thread(work: Callable[[], T]) -> T:
    """Have something done in a thread of its own; return, or raise, what that does."""
    done = _thread.allocate_lock()
    done.acquire()
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            if _libc.unshare(_CLONE_FS) < 0:
                raise last_error()
            found.append(work())
        except BaseException as error:  # noqa: BLE001 - whoever waits is told
            failed.append(error)
        finally:
            done.release()

    # What is not loaded by now would be the container's.
    sys.meta_path.clear()
    _thread.start_new_thread(run, ())
    done.acquire()
    if failed:
        raise failed[0]
    return found[0]
