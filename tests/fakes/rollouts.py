"""A split, a clock and evidence that a rollout can be driven with, without a network."""

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np

from serve_app.config.parse import parse
from serve_app.config.rollout import RolloutConfig
from serve_app.rollout.observations import Look, Pairs
from serve_app.rollouts.evidence import Clock
from serve_app.splits.live_split import Shares, SplitUnreachableError, require_expected


def rollout_file(**changes: Any) -> dict[str, Any]:
    """The smallest useful rollout: two steps, on probes."""
    return {
        "model": "m",
        "baseline": "int8",
        "candidate": "gptq",
        "steps": [{"share_bp": 1000}, {"share_bp": 5000}],
        "each_step": {
            "min_requests": 50,
            "max_requests": 3000,
            "min_duration_s": 10,
            "max_duration_s": 600,
        },
        "evidence": [{"kind": "probes"}],
        "guards": {"errors": {"margin": 0.05}, "ttft": {"mean": {"margin": 0.2}}},
        "target": {"kind": "serve"},
    } | changes


def rollout_config(**changes: Any) -> RolloutConfig:
    return parse(RolloutConfig, rollout_file(**changes), where="test")


class FakeSplit:
    """Implements `SplitStore`; `history` has every split that was put."""

    def __init__(self, shares: Mapping[str, int]) -> None:
        self.shares: Shares = dict(shares)
        self.history: list[Shares] = []
        self.is_down = False
        self.is_closed = False

    async def read(self) -> Shares:
        if self.is_down:
            raise SplitUnreachableError("down")
        return dict(self.shares)

    async def change(self, expected: Mapping[str, int], wanted: Mapping[str, int]) -> None:
        require_expected(await self.read(), expected)
        self.shares = dict(wanted)
        self.history.append(dict(wanted))

    async def close(self) -> None:
        self.is_closed = True


class FakeClock:
    """Time passes when somebody sleeps, and only then."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, self.sleep)


def pairs_of(
    n: int, rng: np.random.Generator, *, slower: float = 1.0, error_rate: float = 0.0
) -> Pairs:
    """Pairs whose candidate is `slower` times as slow, and fails with that rate."""
    times = 0.2 * np.exp(0.3 * rng.normal(size=(n, 2))) * [1.0, slower]
    ok = np.column_stack([np.ones(n, bool), rng.random(n) >= error_rate])
    nan = np.full((n, 2), np.nan)
    latencies = {"ttft": np.where(ok, times, np.nan), "tpot": nan}
    return Pairs(ok, latencies, nan, np.full(n, np.nan), np.full(n, np.nan))


class MadeUpEvidence:
    """Implements `Evidence`: so many pairs a look; `traffic` may be changed at any time."""

    look_s = 5.0
    trouble = None

    def __init__(self, pairs_a_look: int = 40, most: int | None = None, **traffic: float) -> None:
        self.traffic = traffic
        self.begun = 0
        self.mark = 0
        self.is_closed = False
        self._a_look = pairs_a_look
        self._most = most
        self._rng = np.random.default_rng(7)

    @property
    def is_exhausted(self) -> bool:
        return self._most is not None and self.mark >= self._most

    async def begin(self) -> None:
        self.begun += 1

    async def take(self) -> Look:
        n = self._a_look if self._most is None else min(self._a_look, self._most - self.mark)
        self.mark += n
        return Look(pairs=pairs_of(n, self._rng, **self.traffic))

    async def close(self) -> None:
        self.is_closed = True
