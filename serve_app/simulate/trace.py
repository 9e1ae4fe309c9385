"""The arrivals of a simulation: stages, a burst of a given shape, or a recorded trace. Seeded."""

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.campaign.stages import TraceFormat
from loadtests.plan.arrivals import ramp
from loadtests.plan.traces import read_trace
from serve_app.domain.errors import ConfigError
from serve_app.simulate.run import Arrival

_STAGE = re.compile(r"^(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?x(\d+(?:\.\d+)?)$")
SHAPES = ("square", "ramp", "two")


@dataclass(frozen=True)
class Stage:
    """Poisson arrivals whose rate goes along a line."""

    from_per_s: float
    to_per_s: float
    length_s: float


@dataclass(frozen=True)
class Tokens:
    """Output lengths, all of a range alike."""

    least: int
    most: int

    @property
    def mean(self) -> float:
        """Expected tokens per answer."""
        return (self.least + self.most) / 2


def parse_stage(text: str) -> Stage:
    """`12x60`: 12 requests per second for 60 s; `4-24x30`: a ramp. Raises ConfigError."""
    found = _STAGE.match(text)
    if found is None or not float(found[3]):
        raise ConfigError(
            f"{text!r} is no stage: write RATExSECONDS as 12x60, or FROM-TOxSECONDS as 4-24x30"
        )
    low = float(found[1])
    return Stage(low, low if found[2] is None else float(found[2]), float(found[3]))


def parse_tokens(text: str) -> Tokens:
    """`32`, or `16:64` for every length from 16 to 64 alike. Raises ConfigError."""
    low, _, high = text.partition(":")
    if (
        not low.isdecimal()
        or not (high or low).isdecimal()
        or not 1 <= int(low) <= int(high or low)
    ):
        raise ConfigError(f"{text!r} is no range of tokens: write 32, or 16:64")
    return Tokens(int(low), int(high or low))


def burst(
    shape: str, capacity_per_s: float, overload: float, calm: float, burst_s: float
) -> tuple[Stage, ...]:
    """A burst of `overload` times the capacity between stretches at `calm` times of it.

    `square`: up and down at once; `ramp`: up along a line and down along one; `two`: two squares.
    Raises ConfigError for another shape.
    """
    low, high = calm * capacity_per_s, overload * capacity_per_s
    quiet, after = Stage(low, low, burst_s / 2), Stage(low, low, burst_s)
    square = Stage(high, high, burst_s)
    match shape:
        case "square":
            return quiet, square, after
        case "ramp":
            up, down = Stage(low, high, burst_s / 2), Stage(high, low, burst_s / 2)
            return quiet, up, Stage(high, high, burst_s / 3), down, after
        case "two":
            return quiet, square, after, square, after
    raise ConfigError(f"no burst of shape {shape!r}; known: {', '.join(SHAPES)}")


def draw(stages: Sequence[Stage], tokens: Tokens, seed: int) -> tuple[Arrival, ...]:
    """The requests of the stages, one after the other. Raises ConfigError if there are none."""
    rng = random.Random(seed)
    found = tuple(_draw(stages, tokens, rng))
    if not found:
        raise ConfigError("the stages have no requests: give them a higher rate or more seconds")
    return found


def _draw(stages: Sequence[Stage], tokens: Tokens, rng: random.Random) -> Iterator[Arrival]:
    begin_s = 0.0
    for stage in stages:
        for at_s in ramp(stage.from_per_s, stage.to_per_s, stage.length_s, rng):
            yield Arrival(begin_s + at_s, rng.randint(tokens.least, tokens.most))
        begin_s += stage.length_s


def recorded(
    trace_format: TraceFormat, path: Path, speedup: float = 1.0, most_s: float | None = None
) -> tuple[Arrival, ...]:
    """A recorded trace, `speedup` times as fast, its first `most_s` seconds of simulated time.

    Requests that failed when it was recorded (no output tokens) are left out. Raises ConfigError.
    """
    rows = ((row.at_s / speedup, row.output_tokens) for row in read_trace(trace_format, path))
    kept = itertools.takewhile(lambda row: most_s is None or row[0] <= most_s, rows)
    found = tuple(Arrival(at_s, tokens) for at_s, tokens in kept if tokens)
    if not found:
        raise ConfigError(f"{path}: no request of the trace falls into the time that was asked for")
    return found


def mean_tokens(trace: Iterable[Arrival]) -> float:
    """Output tokens per request."""
    counts = [each.tokens for each in trace]
    return sum(counts) / len(counts)
