"""Which process is meant: a PID alone may belong to another one by now."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

_PROC = Path("/proc")
_DEAD_STATES = frozenset("ZXx")


@dataclass(frozen=True)
class ProcessId:
    """A process for good: `started` is the boot, and the clock ticks from it to the start."""

    pid: int
    started: str


def identify(pid: int) -> ProcessId | None:
    """The process that has this PID now; None if there is none, or only what is left of one.

    A process that has ended and that nobody has waited for (a zombie) holds no memory: None.
    """
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before may hold spaces and brackets
    if fields[0] in _DEAD_STATES:
        return None
    return ProcessId(pid, f"{_boot_id()}:{fields[19]}")


def this_process() -> ProcessId:
    """The calling process."""
    process = identify(os.getpid())
    assert process is not None
    return process


def is_alive(process: ProcessId) -> bool:
    """Whether this very process still runs, not another one under its PID."""
    return identify(process.pid) == process


def process_tree(pid: int) -> list[int]:
    """The process and all that descend from it; empty if it is gone."""
    try:
        root = psutil.Process(pid)
        return [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


@cache
def _boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
