"""What is packed on which device, as planned: the bars of the console.

A router knows what each variant sets aside and how many replicas it has, not on which card Ray put
them. So the replicas of a GPU type are laid out here as first-fit decreasing would: the number of
cards and their load are those of a packed fleet, the numbers of the cards are not NVML's.
"""

from collections.abc import Iterable
from dataclasses import dataclass

_GRAIN = 1e-9


@dataclass(frozen=True)
class Placed:
    """One variant's replicas and what each takes; None is not known."""

    variant: str
    replicas: int
    gpu_type: str | None = None
    fraction: float | None = None
    """Of each GPU that a replica uses."""
    n_gpus: int = 1
    """GPUs of one replica; above 1 each is taken whole."""
    weight_bytes: int | None = None
    kv_bytes: int | None = None

    @property
    def own_bytes(self) -> int | None:
        """Weights and cache of one replica; None where the weights are not known."""
        return None if self.weight_bytes is None else self.weight_bytes + (self.kv_bytes or 0)


@dataclass(frozen=True)
class Part:
    """A piece of a bar."""

    variant: str
    share: float
    """Of the device."""
    n_bytes: int | None
    """Weights and cache: on a GPU less than the share, which has room for activations too."""


@dataclass(frozen=True)
class Device:
    """One bar."""

    name: str
    capacity_bytes: int | None
    parts: tuple[Part, ...]

    @property
    def free_share(self) -> float:
        """What nothing is planned on; 0 where more is planned than there is."""
        return max(0.0, 1.0 - sum(part.share for part in self.parts))


def devices_of(placed: Iterable[Placed], host_bytes: int | None) -> tuple[Device, ...]:
    """GPUs by type, then the host's memory with what has no GPU.

    A variant without a replica, or of whose size nothing is known, is on no device.
    """
    running = [each for each in placed if each.replicas > 0]
    gpus = [each for each in running if each.gpu_type is not None]
    devices: list[Device] = []
    for gpu_type in sorted({each.gpu_type for each in gpus if each.gpu_type}):
        devices += _gpus(gpu_type, [each for each in gpus if each.gpu_type == gpu_type])
    host = [each for each in running if each.gpu_type is None]
    if host and host_bytes:
        parts = tuple(
            Part(each.variant, each.own_bytes * each.replicas / host_bytes, n_bytes)
            for each in host
            if each.own_bytes is not None and (n_bytes := each.own_bytes * each.replicas)
        )
        devices.append(Device("Host memory", host_bytes, parts))
    return tuple(devices)


def _gpus(gpu_type: str, placed: list[Placed]) -> list[Device]:
    units = [
        Part(each.variant, each.fraction, each.own_bytes and each.own_bytes // each.n_gpus)
        for each in placed
        if each.fraction is not None
        for _ in range(each.replicas * each.n_gpus)
    ]
    cards: list[list[Part]] = []
    for unit in sorted(units, key=lambda part: (-part.share, part.variant)):
        for card in cards:
            if sum(part.share for part in card) + unit.share <= 1.0 + _GRAIN:
                card.append(unit)
                break
        else:
            cards.append([unit])
    return [Device(f"{gpu_type} {i}", None, tuple(card)) for i, card in enumerate(cards, 1)]
