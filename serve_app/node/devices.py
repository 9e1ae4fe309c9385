"""The memory that engines share: what a device has, what is free, and who holds how much."""

from dataclasses import dataclass
from typing import Protocol

from serve_app.domain.units import format_bytes

HOST = "host"
"""Key of the machine's own memory, where CPU engines live."""


@dataclass(frozen=True)
class Holding:
    """Bytes that a process holds on a device; None where they cannot be told."""

    pid: int
    bytes: int | None

    def describe(self) -> str:
        """As `1.5 GiB`."""
        return "an unknown amount" if self.bytes is None else format_bytes(self.bytes)


class DeviceMemory(Protocol):
    """The memory of one device. Every figure is of now, and of all processes unless said."""

    key: str
    """`GPU-<uuid>`, `MIG-<uuid>` or `host`: the same for all processes of the machine."""

    def total_bytes(self) -> int:
        """All of it, as the device reports it."""

    def free_bytes(self) -> int:
        """What a process that starts now can have."""

    def used_by(self, pids: list[int]) -> int | None:
        """Bytes that these processes hold together; None where the device cannot tell."""

    def holders(self) -> list[Holding]:
        """Who holds memory, the largest first; empty where the device cannot tell."""
