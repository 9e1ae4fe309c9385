"""CPU time of processes, with all their threads and children, to the nanosecond."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil

from serve_app.domain.errors import InvalidRunError


def process_cpu_ns(pid: int) -> int:
    """CPU time, user and system, of all threads that a process has or had.

    The clock that `clock_getcpuclockid(3)` names: /proc/PID/stat counts the same in steps of 10 ms.
    Raises ProcessLookupError.
    """
    try:
        return time.clock_gettime_ns(~pid << 3 | 2)
    except OSError as error:
        raise ProcessLookupError(f"no process {pid}: {error}") from None


def tree(pids: Iterable[int], *, may_end: bool = False) -> set[int]:
    """The processes and all their descendants.

    Raises InvalidRunError when one is gone, unless it `may_end`.
    """
    found: set[int] = set()
    for pid in pids:
        try:
            process = psutil.Process(pid)
            found |= {pid, *(child.pid for child in process.children(recursive=True))}
        except psutil.NoSuchProcess:
            if not may_end:
                raise InvalidRunError(f"process {pid} has ended; see its log") from None
    return found


class CpuMeter:
    """CPU seconds of process trees between two moments."""

    def __init__(self) -> None:
        self.cpu_s: float | None = None
        """Known after `measuring`; None without processes."""

    @contextmanager
    def measuring(self, pids: Iterable[int], *, may_end: bool = False) -> Iterator[None]:
        """Count what the trees use inside. Children that start inside count whole.

        Raises InvalidRunError when a process ends inside, since what it used cannot be known. Those
        that `may_end` count until then for nothing: workers that drain, and do nothing else.
        """
        roots = tuple(pids)
        before = _clocks_ns(tree(roots, may_end=may_end))
        yield
        after = _clocks_ns(tree(roots, may_end=may_end))
        lost = before.keys() - after.keys()
        if lost and not may_end:
            raise InvalidRunError(f"processes {sorted(lost)} ended while they were measured")
        used_ns = sum(now_ns - before.get(pid, 0) for pid, now_ns in after.items())
        self.cpu_s = used_ns / 1e9 if roots else None


def _clocks_ns(pids: Iterable[int]) -> dict[int, int]:
    found = {}
    for pid in pids:
        with suppress(ProcessLookupError):
            found[pid] = process_cpu_ns(pid)
    return found
