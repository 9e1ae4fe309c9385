"""The machine's memory as a device: what CPU engines share, inside the container's limit."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from serve_app.domain.units import MIB
from serve_app.node.devices import HOST, Holding

_SHOWN_HOLDERS = 5
_TINY_BYTES = 200 * MIB


class HostMemory:
    """Memory of the machine, or what a cgroup (v1 or v2) around this process leaves of it."""

    key = HOST

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._cgroups = cgroups

    def total_bytes(self) -> int:
        """The machine's memory, or the cgroup's limit if that is less."""
        limits = [limit for limit, _ in self._limits()]
        return min([psutil.virtual_memory().total, *limits])

    def free_bytes(self) -> int:
        """What the kernel calls available, or what the limit leaves; page cache counts as free."""
        left = [max(limit - used, 0) for limit, used in self._limits()]
        return min([psutil.virtual_memory().available, *left])

    def used_by(self, pids: list[int]) -> int | None:
        """Sum of the processes' PSS: pages that several share count once. None without rights."""
        total = 0
        for pid in pids:
            try:
                total += psutil.Process(pid).memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
            except psutil.AccessDenied:
                return None
        return total

    def holders(self) -> list[Holding]:
        """The largest few processes by resident memory."""
        found = [
            Holding(process.pid, memory.rss)
            for process in psutil.process_iter(["memory_info"])
            if (memory := process.info["memory_info"]) is not None
        ]
        return sorted(found, key=lambda holding: -(holding.bytes or 0))[:_SHOWN_HOLDERS]

    def _limits(self) -> Iterator[tuple[int, int]]:
        """(limit, used) in bytes of every cgroup around this process that has a limit."""
        for line in (self._proc / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                yield from self._walk(self._cgroups, path, "memory.max", "memory.current", "")
            elif "memory" in controllers.split(","):
                root = self._cgroups / "memory"
                names = "memory.limit_in_bytes", "memory.usage_in_bytes"
                yield from self._walk(root, path, *names, "total_")

    def _walk(
        self, root: Path, path: str, limit_file: str, used_file: str, prefix: str
    ) -> Iterator[tuple[int, int]]:
        """From the process's own group up to the root: each may be the one that limits.

        In a container the path may be the host's, which is not mounted: the root is the group then.
        """
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                return
            limit = _number(folder / limit_file)
            used = _number(folder / used_file)
            if limit is not None and used is not None:
                yield limit, used - _statistic(folder / "memory.stat", f"{prefix}inactive_file")


def cpu_model(proc: Path = Path("/proc")) -> str | None:
    """The processor's own name; None where Linux does not tell it."""
    try:
        lines = (proc / "cpuinfo").read_text().splitlines()
    except OSError:
        return None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None)


def cpu_flags(proc: Path = Path("/proc")) -> frozenset[str]:
    """What the processor can do, by Linux's names; empty where Linux does not tell it."""
    try:
        lines = (proc / "cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return frozenset(next(flags, []))


def has_amx(proc: Path = Path("/proc")) -> bool:
    """Whether the processor multiplies bf16 and int8 matrices in tiles."""
    return {"amx_tile", "amx_int8", "amx_bf16"} <= cpu_flags(proc)


def _number(path: Path) -> int | None:
    """The file's number; None if there is no file, or it says `max`."""
    try:
        text = path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if text == "max" else int(text)


def _statistic(path: Path, name: str) -> int:
    """One value of `memory.stat`: page cache that the kernel gives up under pressure."""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def threads_for(folders: Iterable[Path]) -> str:
    """OpenMP threads for the largest of these checkpoints: one where all are tiny, whose time is
    Python's; else one per core."""
    sizes = [sum(path.stat().st_size for path in each.glob("*.safetensors")) for each in folders]
    return "1" if max(sizes, default=0) <= _TINY_BYTES else str(os.cpu_count() or 1)
