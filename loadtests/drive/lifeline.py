"""No load process outlives the one that started it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_GET_PDEATHSIG = 2


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process `number` when its parent ends, however it ends.

    What the parent itself has set stays. Linux only; elsewhere a closed pipe and missing
    heartbeats say the same, later.
    """
    if sys.platform != "linux":
        return
    libc, now = ctypes.CDLL(None, use_errno=True), ctypes.c_int()
    libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(now))
    if now.value == 0:
        libc.prctl(_PR_SET_PDEATHSIG, number)


def never_outlive(parent: int) -> None:
    """For a child between fork and exec: die with `parent`, also if it is gone already."""
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
