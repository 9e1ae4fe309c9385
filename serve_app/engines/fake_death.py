"""How a process of a fake engine runs out of memory."""

import os
import resource
import signal
from pathlib import Path

_MIB = 1 << 20


def exhaust_memory(limit_mib: int) -> None:
    """Take memory until `limit_mib` more than now is refused; then die as by the kernel's killer.

    The limit is the process's own, so that nothing else on the machine is short of memory.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit_bytes = pages * resource.getpagesize() + limit_mib * _MIB
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, hard))
    taken: list[bytearray] = []
    try:
        while True:
            taken.append(bytearray(_MIB))
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)
