"""Which processes belong to which engine, and the end of those whose replica is gone.

Every vLLM process records itself at its start (`serve_app/engines/vllm_plugin.py`). The kernel ends
most of them with their replica; what is left (its parent ended before it asked the kernel for that,
or was not the replica) is found here by PID and start time, never by name: killing by name ends the
engines of others.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from serve_app.node.processes import ProcessId, is_alive, this_process

OWNER = "QUANTILE_ENGINE_OWNER"
"""Environment variable that a replica hands to the processes of its engine."""

REAP_WAIT_S = 10.0
_RECORDS = "engines"
_SUFFIX = ".json"
_POLL_S = 0.05

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class EngineOwner:
    """The replica of an engine; `planned_bytes` on each of `devices`."""

    process: ProcessId
    variant: str
    devices: tuple[str, ...]
    planned_bytes: int
    directory: str


@dataclass(frozen=True)
class EngineRecord:
    """One process of an engine."""

    process: ProcessId
    owner: EngineOwner


@dataclass(frozen=True)
class Reaped:
    """Orphans that were found: those that ended, and those that were still there after the wait."""

    ended: tuple[EngineRecord, ...]
    remaining: tuple[EngineRecord, ...]


def announce_owner(variant: str, devices: tuple[str, ...], planned: int, directory: Path) -> None:
    """Have the engine processes that this process starts from now on record it as their owner."""
    owner = EngineOwner(this_process(), variant, devices, planned, str(directory))
    os.environ[OWNER] = msgspec.json.encode(owner).decode()


def owner_of_this_process() -> EngineOwner | None:
    """The replica that this process was started for; None in a replica, and outside of QuanTile."""
    announced = os.environ.get(OWNER)
    if announced is None:
        return None
    owner = msgspec.json.decode(announced, type=EngineOwner)
    return None if owner.process == this_process() else owner


def register_engine_process() -> None:
    """Record the calling process, if it was started for a replica.

    May be called again. Raises OSError if the record cannot be written.
    """
    owner, process = owner_of_this_process(), this_process()
    if owner is None:
        return
    folder = Path(owner.directory) / _RECORDS
    folder.mkdir(mode=0o700, exist_ok=True)
    content = msgspec.json.encode(EngineRecord(process, owner))
    unfinished = folder / f"{process.pid}.unfinished"
    unfinished.write_bytes(content)
    unfinished.rename(folder / f"{process.pid}{_SUFFIX}")  # whoever reads sees all of it


def engine_records(directory: Path) -> list[EngineRecord]:
    """The engine processes that are recorded and still run."""
    return [record for _, record in _records(directory) if is_alive(record.process)]


def variants_by_pid(directory: Path) -> dict[int, str]:
    """Which variant a process belongs to: engine processes and their replicas."""
    names = {}
    for record in engine_records(directory):
        names[record.process.pid] = names[record.owner.process.pid] = record.owner.variant
    return names


def reap_orphans(
    directory: Path,
    wait_s: float = REAP_WAIT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Reaped:
    """Kill the recorded processes whose owner is gone, wait until they ended, drop old records.

    Several may do it at once. Blocks for at most `wait_s`, and only if there was something to kill.
    """
    orphans = []
    for path, record in _records(directory):
        if not is_alive(record.process):
            _drop(path, record)
        elif not is_alive(record.owner.process):
            orphans.append((path, record))
            _kill(record)
    deadline_s = clock() + wait_s
    remaining = orphans
    while remaining := [entry for entry in remaining if is_alive(entry[1].process)]:
        if clock() >= deadline_s:
            break
        sleep(_POLL_S)
    for path, record in orphans:
        if (path, record) not in remaining:
            _drop(path, record)
    left = tuple(record for _, record in remaining)
    return Reaped(tuple(record for _, record in orphans if record not in left), left)


def _kill(record: EngineRecord) -> None:
    logger.warning(
        "killing process %d: a leftover of variant %s, whose replica (pid %d) is gone",
        record.process.pid,
        record.owner.variant,
        record.owner.process.pid,
    )
    try:
        process = psutil.Process(record.process.pid)
        if is_alive(record.process):  # looked up again: psutil refuses a PID that changes hands now
            process.kill()
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        logger.error("may not kill process %d; end it by hand", record.process.pid)


def _drop(path: Path, record: EngineRecord) -> None:
    """Remove a record, unless another process with the same PID has written its own there."""
    if _read(path) == record:
        path.unlink(missing_ok=True)


def _records(directory: Path) -> Iterator[tuple[Path, EngineRecord]]:
    for path in sorted((directory / _RECORDS).glob(f"*{_SUFFIX}")):
        if (record := _read(path)) is not None:
            yield path, record


def _read(path: Path) -> EngineRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=EngineRecord)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        logger.warning("%s is no record of an engine process (%s): ignored", path, error)
        return None
