"""What a relay costs at rest, per request, and per token: by answers of three lengths, and a wait.

CPU per token of one length of answer mixes the three: at rest a Serve replica works for itself,
and a request costs Serve and a router something once, however long its answer is. Short and long
answers tell them apart; those of the usual length tell how well that explains them.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from loadtests.relay_bench.cpu import CpuMeter
from loadtests.relay_bench.figures import Spread, spread
from loadtests.relay_bench.nouns import Level, Sample, Way
from loadtests.relay_bench.rounds import in_turn

REST_S = 4.0
SHORT_REQUESTS, USUAL_REQUESTS, LONG_REQUESTS = 20, 5, 1
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
    usual_us_per_token: float
    """All in all, for answers of the usual length, as measured."""
    explained: float
    """What the parts come to there, over what was measured."""


class Parts(msgspec.Struct, frozen=True):
    """What one way costs: medians and ranges over rounds."""

    way: str
    rest_us_per_s: Spread
    us_per_request: Spread
    us_per_token: Spread
    usual_us_per_token: Spread
    explained: Spread


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


class Levels(NamedTuple):
    """Answers of a sixteenth of the usual number of tokens, of the usual one, of four times it."""

    short: Level
    usual: Level
    long: Level


def levels(clients: int, tokens: int) -> Levels:
    """Three levels of load that differ in the length of answers."""
    return Levels(
        Level(clients, SHORT_REQUESTS, max(1, tokens // 16)),
        Level(clients, USUAL_REQUESTS, tokens),
        Level(clients, LONG_REQUESTS, 4 * tokens),
    )


def measure_parts(
    ways: Sequence[Way], lengths: Levels, number: int, run: Callable[[Way, Level], Sample]
) -> Iterator[PartsSample]:
    """Round `number` over all ways that have a relay, beginning with another each time.

    Raises InvalidRunError.
    """
    ways = [way for way in ways if way.pids]
    rest = _at_rest(ways)
    for way in in_turn(ways, number):
        short, usual, long = (_load(way, each, run) for each in lengths)
        yield sample(way.name, number, rest[way.name], short, usual, long)


def sample(
    way: str, number: int, rest_us_per_s: float, short: Load, usual: Load, long: Load
) -> PartsSample:
    """The parts by `short` and `long`, and what they come to for `usual`."""
    per_request, per_token = solve(rest_us_per_s, short, long)
    of_requests_us = per_request * usual.n_requests + per_token * usual.n_tokens
    parts_us = rest_us_per_s * usual.elapsed_s + of_requests_us
    usual_us = usual.cpu_s * 1e6
    return PartsSample(
        way=way,
        round=number,
        rest_us_per_s=rest_us_per_s,
        us_per_request=per_request,
        us_per_token=per_token,
        usual_us_per_token=usual_us / usual.n_tokens,
        explained=parts_us / usual_us,
    )


def parts_of(samples: Sequence[PartsSample]) -> list[Parts]:
    """Over rounds, by way."""

    def of(way: str, value: Callable[[PartsSample], float]) -> Spread:
        found = spread(value(each) for each in samples if each.way == way)
        assert found is not None
        return found

    return [
        Parts(
            way=way,
            rest_us_per_s=of(way, lambda each: each.rest_us_per_s),
            us_per_request=of(way, lambda each: each.us_per_request),
            us_per_token=of(way, lambda each: each.us_per_token),
            usual_us_per_token=of(way, lambda each: each.usual_us_per_token),
            explained=of(way, lambda each: each.explained),
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
    return {name: _cpu_s(meter.cpu_s) * 1e6 / elapsed_s for name, meter in meters.items()}


def _load(way: Way, level: Level, run: Callable[[Way, Level], Sample]) -> Load:
    start_s = time.monotonic()
    found = run(way, level)
    elapsed_s = time.monotonic() - start_s
    return Load(found.streams, found.tokens, elapsed_s, _cpu_s(found.cpu_s))


def _cpu_s(cpu_s: float | None) -> float:
    assert cpu_s is not None, "a way without a relay has no parts"
    return cpu_s
