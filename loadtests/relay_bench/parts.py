"""What a relay costs at rest, per request, and per token: from answers of two lengths, and a wait.

CPU per token of one length of answer mixes the three: at rest a Serve replica works for itself, and
a request costs Serve and a router something once, however long its answer is.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from loadtests.relay_bench.cpu import CpuMeter
from loadtests.relay_bench.figures import Spread, spread
from loadtests.relay_bench.nouns import Level, Sample, Way

REST_S = 4.0
SHORT_REQUESTS, LONG_REQUESTS = 20, 2
"""Counted ones of each client."""


class Load(msgspec.Struct, frozen=True):
    """What a relay did in some time, and the CPU time it took for it."""

    n_requests: int
    n_tokens: int
    elapsed_s: float
    cpu_s: float


class PartsSample(msgspec.Struct, frozen=True):
    """What one way cost in one round. Of the relay's own processes."""

    way: str
    round: int
    rest_us_per_s: float
    us_per_request: float
    us_per_token: float


class Parts(msgspec.Struct, frozen=True):
    """What one way costs: medians and ranges over rounds."""

    way: str
    rest_us_per_s: Spread
    us_per_request: Spread
    us_per_token: Spread


def solve(rest_us_per_s: float, short: Load, long: Load) -> tuple[float, float]:
    """CPU us per request and per token of two loads whose answers differ in length."""
    short_us, long_us = (
        load.cpu_s * 1e6 - rest_us_per_s * load.elapsed_s for load in (short, long)
    )
    determinant = short.n_requests * long.n_tokens - long.n_requests * short.n_tokens
    return (
        (short_us * long.n_tokens - long_us * short.n_tokens) / determinant,
        (long_us * short.n_requests - short_us * long.n_requests) / determinant,
    )


def levels(clients: int, tokens: int) -> tuple[Level, Level]:
    """Answers of a sixteenth and of four times the usual number of tokens."""
    return (
        Level(clients, SHORT_REQUESTS, max(1, tokens // 16)),
        Level(clients, LONG_REQUESTS, 4 * tokens),
    )


def measure_parts(
    ways: Sequence[Way],
    short_and_long: tuple[Level, Level],
    number: int,
    run: Callable[[Way, Level], Sample],
) -> list[PartsSample]:
    """Round `number` over all ways that have a relay. Raises InvalidRunError."""
    ways = [way for way in ways if way.pids]
    rest = _at_rest(ways)
    samples = []
    for way in ways:
        short, long = (_load(way, level, run) for level in short_and_long)
        found = solve(rest[way.name], short, long)
        samples.append(PartsSample(way.name, number, rest[way.name], *found))
    return samples


def parts_of(samples: Sequence[PartsSample]) -> list[Parts]:
    """Over rounds, in the order in which the ways first came."""
    return [
        Parts(
            way,
            _spread(each.rest_us_per_s for each in samples if each.way == way),
            _spread(each.us_per_request for each in samples if each.way == way),
            _spread(each.us_per_token for each in samples if each.way == way),
        )
        for way in dict.fromkeys(each.way for each in samples)
    ]


def _at_rest(ways: Sequence[Way]) -> Mapping[str, float]:
    """CPU us per second of each way while nobody asks anything."""
    with contextlib.ExitStack() as stack:
        meters = {way.name: CpuMeter() for way in ways}
        for way in ways:
            stack.enter_context(meters[way.name].measuring(way.pids))
        start_s = time.monotonic()
        time.sleep(REST_S)
        elapsed_s = time.monotonic() - start_s
    return {name: (meter.cpu_s or 0.0) * 1e6 / elapsed_s for name, meter in meters.items()}


def _load(way: Way, level: Level, run: Callable[[Way, Level], Sample]) -> Load:
    start_s = time.monotonic()
    sample = run(way, level)
    elapsed_s = time.monotonic() - start_s
    return Load(sample.streams, sample.tokens, elapsed_s, sample.cpu_s or 0.0)


def _spread(values: Iterable[float]) -> Spread:
    found = spread(values)
    assert found is not None
    return found
