"""What the planner knows of a GPU type."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuProfile:
    """One GPU type of the catalogue (`configs/gpus.yaml`, which names each figure's source).

    `total_bytes` is what NVML reports; `reserved_bytes` is the part of it that the driver keeps and
    CUDA never hands out, so that `usable_bytes` is what vLLM sees as the card's total.
    `accelerator_type` is the value of Ray's node label `ray.io/accelerator-type`.
    """

    name: str
    accelerator_type: str
    total_bytes: int
    reserved_bytes: int
    compute_capability: tuple[int, int]
    bandwidth_gb_per_s: float
    price_usd_per_hour: float | None = None

    @property
    def usable_bytes(self) -> int:
        """The bytes that processes on this GPU can have together."""
        return self.total_bytes - self.reserved_bytes
