"""One replica of a variant, simulated: continuous batching, step by step."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.simulate.curves import ServiceCurve


@dataclass(slots=True)
class Job:
    """One request and what becomes of it. Seconds from the start; None: not yet."""

    index: int
    arrived_s: float
    tokens: int
    variant: str = ""
    replica: int = 0
    first_s: float | None = None
    end_s: float | None = None
    made: int = 0

    @property
    def ttft_s(self) -> float:
        """From arrival to the first token; it must have one."""
        assert self.first_s is not None
        return self.first_s - self.arrived_s

    @property
    def tpot_s(self) -> float | None:
        """Per token after the first; None for one token. It must have ended."""
        assert self.first_s is not None
        assert self.end_s is not None
        return (self.end_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else None


class Engine:
    """Takes waiting requests in order, up to its batch, at the beginning of each step."""

    def __init__(self, curve: ServiceCurve) -> None:
        self._steps_s = [0.0, *(curve.step_s(n) for n in range(1, curve.max_batch + 1))]
        self._prefill_s = curve.prefill_s
        self._waiting: deque[Job] = deque()
        self._batch: list[Job] = []
        self.is_busy = False

    @property
    def in_flight(self) -> int:
        """Requests in the batch and waiting."""
        return len(self._batch) + len(self._waiting)

    def take(self, job: Job) -> None:
        """A request arrives; it is worked on from the next step on."""
        self._waiting.append(job)

    def begin(self, slowdown: float = 1.0) -> float:
        """Begin a step; seconds until it ends. There must be a request."""
        self.is_busy = True
        taken = 0
        while self._waiting and len(self._batch) < len(self._steps_s) - 1:
            self._batch.append(self._waiting.popleft())
            taken += 1
        return slowdown * (self._steps_s[len(self._batch)] + taken * self._prefill_s)

    def end(self, now_s: float) -> tuple[Sequence[Job], Sequence[Job]]:
        """The step is over: who got the first token, and who the last."""
        self.is_busy = False
        begun, done = [], []
        for job in self._batch:
            job.made += 1
            if job.made == 1:
                job.first_s = now_s
                begun.append(job)
            if job.made >= job.tokens:
                job.end_s = now_s
                done.append(job)
        if done:
            self._batch = [job for job in self._batch if job.end_s is None]
        return begun, done
