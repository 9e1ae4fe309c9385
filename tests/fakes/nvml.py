"""NVIDIA's bindings without a GPU: takes the place of the module `pynvml`."""

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

GIB = 1 << 30


@dataclass
class Card:
    uuid: str
    name: str = "NVIDIA L4"
    total: int = 24 * GIB
    reserved: int = GIB
    free: int = 20 * GIB
    capability: tuple[int, int] = (8, 9)
    processes: list[tuple[int, int | None]] = field(default_factory=list)


class FakeNvml:
    """The cards of a machine; `broken` makes every question fail."""

    nvmlMemory_v2 = 2  # noqa: N815 - NVIDIA's name

    class NVMLError(Exception):
        pass

    def __init__(self, *cards: Card) -> None:
        self.cards = list(cards)
        self.broken: str | None = None

    def install(self, patch: pytest.MonkeyPatch) -> "FakeNvml":
        patch.setitem(sys.modules, "pynvml", self)
        patch.setattr("serve_app.node.nvml._initialise", self.nvmlInit)
        return self

    def nvmlInit(self) -> None:  # noqa: N802
        if self.broken:
            raise self.NVMLError(self.broken)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return sum(not card.uuid.startswith("MIG-") for card in self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        if index >= self.nvmlDeviceGetCount():
            raise self.NVMLError("Invalid Argument")
        return [card for card in self.cards if not card.uuid.startswith("MIG-")][index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:  # noqa: N802
        for card in self.cards:
            if card.uuid == uuid:
                return card
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetUUID(self, card: Card) -> str:  # noqa: N802
        return card.uuid

    def nvmlDeviceGetName(self, card: Card) -> str:  # noqa: N802
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card: Card, version: int | None = None):  # noqa: N802
        return SimpleNamespace(total=card.total, free=card.free, reserved=card.reserved)

    def nvmlDeviceGetCudaComputeCapability(self, card: Card) -> list[int]:  # noqa: N802
        return list(card.capability)

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card):  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=n) for pid, n in card.processes]
