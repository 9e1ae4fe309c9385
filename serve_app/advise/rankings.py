"""Who is fastest at which load level, and where that turns round."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from serve_app.advise.contrasts import Contrast
from serve_app.advise.evidence import Evidence, latency_at


@dataclass(frozen=True)
class Rank:
    """A variant's place at one load level: one more than the number of those decidedly faster.

    `is_open`: another place is possible, since some comparison with it is not decided.
    """

    variant: str
    place: int
    is_open: bool


@dataclass(frozen=True)
class Ranking:
    """All variants that were measured at one level, the fastest first."""

    level: str
    ranks: tuple[Rank, ...]


@dataclass(frozen=True)
class Crossing:
    """Two variants of which one is decidedly faster at one level and slower at another."""

    first: str
    second: str
    faster_at: str
    slower_at: str
    gain: float
    """Logarithm of the ratio of latencies, second to first, where the first is faster."""
    loss: float
    """The same where it is slower: negative."""


def rank(evidence: Evidence, level: str) -> Ranking:
    """The ranking of one level. Equal places are told apart by nothing that was measured."""
    names = [
        name for name in evidence.names
        if (at := evidence[name].at.get(level)) is not None and at.latency_ms is not None
    ]  # fmt: skip
    ranks = []
    for name in names:
        found = [_contrast(evidence, level, name, other) for other in names if other != name]
        place = 1 + sum(each is not None and each.is_worse for each in found)
        is_open = any(each is None or not each.is_decided for each in found)
        ranks.append(Rank(name, place, is_open))
    return Ranking(level, tuple(sorted(ranks, key=lambda each: each.place)))


def crossings(evidence: Evidence, levels: Sequence[str]) -> tuple[Crossing, ...]:
    """Pairs whose order turns round between two of these levels; the widest swing of each."""
    found = []
    for one, other in combinations(evidence.names, 2):
        known = [(level, _contrast(evidence, level, one, other)) for level in levels]
        decided = [(level, c.gain, c) for level, c in known if c is not None and c.gain is not None]
        faster = [(gain, level) for level, gain, c in decided if c.is_better]
        slower = [(gain, level) for level, gain, c in decided if c.is_worse]
        if faster and slower:
            (gain, at), (loss, back) = max(faster), min(slower)
            found.append(Crossing(one, other, at, back, gain, loss))
    return tuple(found)


def _contrast(evidence: Evidence, level: str, one: str, other: str) -> Contrast | None:
    return evidence.contrast(latency_at(level), one, other)
