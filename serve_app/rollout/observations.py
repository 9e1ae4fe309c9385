"""What was seen of both arms: pairs of answers to one request, or counts over a window of time."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

LatencyName = Literal["ttft", "tpot"]
LATENCIES: tuple[LatencyName, ...] = ("ttft", "tpot")
BIN_RATIO = 1.02
"""Of neighbouring edges, where latencies are known exactly: a threshold is right to 2 %."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of one arm. None: not known, or there was none."""

    ok: bool
    """Whole, and no error."""
    ttft_s: float | None = None
    tpot_s: float | None = None
    """Time per output token after the first."""
    wrong: bool | None = None
    """Whether it misses what was expected of it."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """The same request, answered by both arms."""

    baseline: Answer
    candidate: Answer
    disagrees: bool | None = None
    """Whether the candidate's answer differs from the baseline's."""
    floor_disagrees: bool | None = None
    """Whether the baseline's second answer differs from its first: what chance alone does."""


@dataclass(frozen=True)
class Pairs:
    """Pairs in columns, in the order in which they came; NaN is not known.

    Shape (n, 2): baseline, candidate.
    """

    ok: NDArray[np.bool_]
    latencies_s: Mapping[str, Values]
    """By name; NaN as well where the answer is not ok."""
    wrong: Values
    disagrees: Values
    """Shape (n,), as `floor_disagrees`."""
    floor_disagrees: Values

    def __len__(self) -> int:
        return len(self.ok)

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "Pairs":
        """The columns of these pairs."""

        def both(get: Callable[[Answer], float | None]) -> Values:
            rows = [(_known(get(pair.baseline)), _known(get(pair.candidate))) for pair in pairs]
            return np.array(rows, float).reshape(-1, 2)

        return cls(
            ok=np.array([(p.baseline.ok, p.candidate.ok) for p in pairs], bool).reshape(-1, 2),
            latencies_s={
                "ttft": both(lambda answer: answer.ttft_s if answer.ok else None),
                "tpot": both(lambda answer: answer.tpot_s if answer.ok else None),
            },
            wrong=both(lambda answer: answer.wrong),
            disagrees=np.array([_known(pair.disagrees) for pair in pairs], float),
            floor_disagrees=np.array([_known(pair.floor_disagrees) for pair in pairs], float),
        )


NO_PAIRS = Pairs.of(())


class ArmWindow(msgspec.Struct, frozen=True, kw_only=True):
    """One arm's requests of a window."""

    requests: int
    errors: int
    latencies: Mapping[str, Mapping[float, int]] = {}
    """Requests by latency: name -> upper edge of the bucket in seconds -> requests in it."""

    def above(self, name: str, threshold_s: float) -> tuple[int, int]:
        """(requests above the threshold, which is an edge; requests)."""
        buckets = self.latencies.get(name, {})
        n_above = sum(n for edge, n in buckets.items() if edge > threshold_s)
        return n_above, sum(buckets.values())


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What both arms did over the same time."""

    baseline: ArmWindow
    candidate: ArmWindow


@dataclass(frozen=True)
class Look:
    """What is new since the last look, in the order in which it came."""

    pairs: Pairs = NO_PAIRS
    windows: tuple[Window, ...] = ()

    @property
    def n_candidate(self) -> int:
        """Requests that the candidate answered."""
        return len(self.pairs) + sum(window.candidate.requests for window in self.windows)


def bin_powers(latencies_s: Values) -> NDArray[np.int_]:
    """The bins of latencies that are known exactly: bin i ends at BIN_RATIO**i."""
    powers: NDArray[np.int_] = np.ceil(
        np.log(np.maximum(latencies_s, 1e-6)) / math.log(BIN_RATIO) - 1e-9
    ).astype(int)
    return powers


@cache
def bin_edge(power: int) -> float:
    """The upper edge of a bin, in seconds."""
    return float(f"{BIN_RATIO**power:.6g}")


def baseline_counts(look: Look, name: LatencyName) -> dict[float, int]:
    """The baseline's latencies of a look: upper edge in seconds -> requests."""
    latencies_s = look.pairs.latencies_s[name][:, 0]
    powers, n_in = np.unique(bin_powers(latencies_s[~np.isnan(latencies_s)]), return_counts=True)
    counts = {bin_edge(p): n for p, n in zip(powers.tolist(), n_in.tolist(), strict=True)}
    for window in look.windows:
        for edge, n in window.baseline.latencies.get(name, {}).items():
            counts[edge] = counts.get(edge, 0) + n
    return counts


def quantile_edge(counts: Mapping[float, int], quantile: float) -> float | None:
    """The lowest edge with at least this share of the requests at or below it.

    The last finite edge where only an infinite one would do; None where there is none.
    """
    total, below = sum(counts.values()), 0
    best = None
    for edge in sorted(counts):
        if math.isinf(edge):
            break
        best = edge
        below += counts[edge]
        if below >= quantile * total:
            break
    return best


def _known(value: float | None) -> float:
    return math.nan if value is None else float(value)
