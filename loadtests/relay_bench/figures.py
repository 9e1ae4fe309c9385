"""From rounds to figures: ratios are taken inside a round, so that a slow moment meets both sides.

Medians over rounds stand beside their range. P99 is taken over all rounds together, and is missing
below `MIN_FOR_P99` samples: the largest of thirty values is no P99.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence

import msgspec

from loadtests.relay_bench.nouns import DIRECT, HAPROXY, SILENT, Sample

MIN_FOR_P99 = 100


class Spread(msgspec.Struct, frozen=True):
    """A median over rounds and its range."""

    median: float
    low: float
    high: float
    n: int


class LevelFigures(msgspec.Struct, frozen=True):
    """One way at one number of clients. None: nothing to measure, or too few samples."""

    way: str
    clients: int
    cpu_us_per_token: Spread | None
    """Of the relay's own processes."""
    path_us_per_token: Spread | None
    """With all that the way needs beside the relay."""
    times_haproxy: Spread | None
    """CPU per token over that of the HAProxy pass in the same round."""
    added_p50_ms: Spread | None
    """TTFT P50 less the direct way's in the same round."""
    added_p99_ms: float | None
    """TTFT P99 less the direct way's, over all rounds."""
    ttft_p50_ms: float
    n_ttfts: int
    streams_per_s: Spread
    times_silent: Spread | None = None
    """CPU per token over that of the router that tells nothing, in the same round."""


def spread(values: Iterable[float]) -> Spread | None:
    """Median and range; None of nothing."""
    kept = list(values)
    if not kept:
        return None
    return Spread(statistics.median(kept), min(kept), max(kept), len(kept))


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that `share` of the values do not exceed."""
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(rank, 1) - 1]


def figures(samples: Sequence[Sample]) -> list[LevelFigures]:
    """Figures of each way at each level, in the order in which they first came."""
    keys = dict.fromkeys((sample.way, sample.clients) for sample in samples)
    return [_of_way(samples, way, clients) for way, clients in keys]


def _of_way(samples: Sequence[Sample], way: str, clients: int) -> LevelFigures:
    rounds = _rounds(samples, way, clients)
    direct = _rounds(samples, DIRECT, clients)
    haproxy = _rounds(samples, HAPROXY, clients)
    silent = _rounds(samples, SILENT, clients)

    def over(other: dict[int, Sample], value: Callable[[Sample, Sample], float]) -> Spread | None:
        both = rounds.keys() & other.keys()
        return None if way == DIRECT else spread(value(rounds[n], other[n]) for n in both)

    has_cost = all(sample.cpu_s is not None for sample in rounds.values())
    streams = spread(sample.streams / sample.wall_s for sample in rounds.values())
    assert streams is not None
    return LevelFigures(
        way=way,
        clients=clients,
        cpu_us_per_token=spread(_us(s.cpu_s, s) for s in rounds.values() if s.cpu_s is not None),
        path_us_per_token=spread(
            _us(s.path_cpu_s, s) for s in rounds.values() if s.path_cpu_s is not None
        ),
        times_haproxy=over(haproxy, _times) if has_cost else None,
        added_p50_ms=over(direct, _added_p50_ms),
        added_p99_ms=None if way == DIRECT else _added_p99_ms(rounds, direct),
        ttft_p50_ms=percentile(_ttfts_s(rounds), 0.5) * 1e3,
        n_ttfts=len(_ttfts_s(rounds)),
        streams_per_s=streams,
        times_silent=over(silent, _times) if has_cost else None,
    )


def _rounds(samples: Sequence[Sample], way: str, clients: int) -> dict[int, Sample]:
    return {s.round: s for s in samples if s.way == way and s.clients == clients}


def _us(cpu_s: float, sample: Sample) -> float:
    return cpu_s / sample.tokens * 1e6


def _times(sample: Sample, other: Sample) -> float:
    assert sample.cpu_s is not None
    assert other.cpu_s is not None
    return (sample.cpu_s / sample.tokens) / (other.cpu_s / other.tokens)


def _added_p50_ms(sample: Sample, direct: Sample) -> float:
    return (percentile(sample.ttfts_s, 0.5) - percentile(direct.ttfts_s, 0.5)) * 1e3


def _added_p99_ms(rounds: dict[int, Sample], direct: dict[int, Sample]) -> float | None:
    own, base = _ttfts_s(rounds), _ttfts_s(direct)
    if min(len(own), len(base)) < MIN_FOR_P99:
        return None
    return (percentile(own, 0.99) - percentile(base, 0.99)) * 1e3


def _ttfts_s(rounds: dict[int, Sample]) -> list[float]:
    return [ttft_s for sample in rounds.values() for ttft_s in sample.ttfts_s]
