"""Whether one core sends a load of Poisson arrivals on time, or says that it could not."""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.bench.drive import Driven, drive
from loadtests.bench.mock import mock_engine
from serve_app.domain.errors import ConfigError
from serve_app.domain.units import NS_PER_MS

LAG_P99_MS = 10.0
ACHIEVED_SHARE = 0.99
BUSY_LOAD = 0.5
"""Load average before the start from which others may have had our cores."""


@dataclass(frozen=True)
class Pace:
    """How the load process kept its plan."""

    offered_per_s: float
    achieved_per_s: float
    """Requests that were sent and answered, over the time in which they were due."""
    lag_p50_ms: float
    lag_p99_ms: float
    """Nearest rank of t_send - t_sched; a request that was not sent is later than any."""
    lag_max_ms: float
    cpu_share: float
    """Of one core, while requests were due."""

    def reasons(self) -> list[str]:
        """Why the load was not held; empty when it was."""
        found = []
        if self.lag_p99_ms > LAG_P99_MS:
            found.append(f"lag P99 {self.lag_p99_ms:.1f} ms, need at most {LAG_P99_MS:g}")
        if self.achieved_per_s < ACHIEVED_SHARE * self.offered_per_s:
            found.append(
                f"{self.achieved_per_s:.1f} of {self.offered_per_s:g} requests/s, "
                f"need {ACHIEVED_SHARE:.0%}"
            )
        return found


def pace_of(driven: Driven, duration_s: float) -> Pace:
    """Read the pace from what one cell of `duration_s` left: a record per planned request."""
    lags_ms = [
        float("inf") if r.t_send_ns is None else (r.t_send_ns - r.t_sched_ns) / NS_PER_MS
        for r in driven.records
    ]
    p50, p99 = np.quantile(lags_ms, [0.5, 0.99], method="inverted_cdf")
    n_answered = sum(record.error is None for record in driven.records)
    (run,) = driven.runs
    return Pace(
        offered_per_s=len(driven.records) / duration_s,
        achieved_per_s=n_answered / duration_s,
        lag_p50_ms=float(p50),
        lag_p99_ms=float(p99),
        lag_max_ms=max(lags_ms),
        cpu_share=run.cpu_s / duration_s,
    )


def measure(rate_per_s: float, n_tokens: int, duration_s: float) -> Pace:
    """Send the load from one core to a mock on another. Raises ConfigError if there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ConfigError(f"need two cores, one for the mock engine, have {cores}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with mock_engine(folder, ttft_ms=50, itl_ms=10, cpu=cores[0]) as mock:
            stage = {
                "name": "pace",
                "kind": "poisson",
                "rate_per_s": rate_per_s,
                "duration_s": duration_s,
            }
            campaign = {
                "target": {"base_url": mock.base_url, "model": "m", "variants": ["a"]},
                "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [n_tokens, n_tokens]},
                "stages": [stage],
                "in_flight_cap": 10_000,
            }
            driven = drive(folder / "run", campaign, cpu=cores[1])
    return pace_of(driven, duration_s)


def bench(rate_per_s: float, n_tokens: int, duration_s: float) -> bool:
    """Print the pace; whether the load was held."""
    print(f"{rate_per_s:g} requests/s of {n_tokens} tokens, {duration_s:g} s", file=sys.stderr)
    load_before = os.getloadavg()[0]
    pace = measure(rate_per_s, n_tokens, duration_s)
    print(
        f"offered {pace.offered_per_s:.1f}/s, achieved {pace.achieved_per_s:.1f}/s, "
        f"{pace.achieved_per_s * n_tokens:.0f} tokens/s\n"
        f"lag P50 {pace.lag_p50_ms:.2f} ms, P99 {pace.lag_p99_ms:.2f} ms, "
        f"max {pace.lag_max_ms:.2f} ms\n"
        f"CPU of the load process {pace.cpu_share:.0%} of one core"
    )
    reasons = pace.reasons()
    if not reasons:
        print("PASS")
        return True
    print(f"FAIL, one core could not hold it: {'; '.join(reasons)}")
    if load_before > BUSY_LOAD:
        print(f"the machine was not ours alone: load average {load_before:.1f} before the start")
    return False
