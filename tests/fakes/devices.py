"""Device memory that a test sets: implements `serve_app.node.devices.DeviceMemory`."""

from serve_app.node.devices import Holding


class FakeDevice:
    """`free` may be a number, or a list that is read off, its last value for good."""

    def __init__(self, key: str = "GPU-a", total: int = 100, free: int | list[int] = 100) -> None:
        self.key = key
        self.total = total
        self.free = [free] if isinstance(free, int) else list(free)
        self.used: int | Exception | None = 0
        self.holding: list[Holding] = []
        self.asked_pids: list[list[int]] = []

    def total_bytes(self) -> int:
        return self.total

    def free_bytes(self) -> int:
        return self.free.pop(0) if len(self.free) > 1 else self.free[0]

    def used_by(self, pids: list[int]) -> int | None:
        self.asked_pids.append(pids)
        if isinstance(self.used, Exception):
            raise self.used
        return self.used

    def holders(self) -> list[Holding]:
        return self.holding
