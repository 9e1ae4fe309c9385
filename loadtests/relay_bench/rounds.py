"""Rounds of all ways at some level of load, each way's CPU time counted."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from loadtests.relay_bench.client import Task
from loadtests.relay_bench.cpu import CpuMeter
from loadtests.relay_bench.nouns import CLIENTS, TELLING, Level, Sample, Way
from loadtests.relay_bench.processes import run_client
from loadtests.relay_bench.upstream import MODEL, TOKEN

SAMPLES_PER_ROUND = 96
MAX_REQUESTS = 50
SOLO_TOKENS = 8
"""Tokens at a single client: it has to ask often, and one stream after the other takes long."""


@dataclass(frozen=True)
class Settings:
    """One run."""

    rounds: int
    clients: tuple[int, ...]
    tokens: int
    ttft_ms: float
    itl_ms: float
    steps: bool
    peers: bool
    engine: str | None
    engine_config: str
    tracing: bool = False
    engine_rounds: int = 10
    engine_requests: int = 8
    engine_only: bool = False
    parts: bool = False


def level(clients: int, tokens: int) -> Level:
    """The load of one round at so many clients: about `SAMPLES_PER_ROUND` counted streams."""
    requests = min(MAX_REQUESTS, max(1, -(-SAMPLES_PER_ROUND // clients)))
    return Level(clients, requests, tokens if clients > 1 else min(tokens, SOLO_TOKENS))


def rounds(
    ways: Sequence[Way], settings: Settings, tell: Callable[[str], None]
) -> Iterator[list[Sample]]:
    """Rounds over all ways, level by level; the first round is a warm-up, and yields nothing.

    Raises InvalidRunError when a stream failed or came short.
    """
    for number in range(settings.rounds + 1):
        start_s = time.monotonic()
        for clients in settings.clients:
            load = level(clients, settings.tokens) if number else Level(clients, 1, 8)
            samples = one_round(ways, load, number, settings)
            if number:
                yield samples
        told = f"round {number} of {settings.rounds}" if number else "warm-up"
        tell(f"{told}: {time.monotonic() - start_s:.0f} s")


def one_round(ways: Sequence[Way], load: Level, number: int, settings: Settings) -> list[Sample]:
    """Every way at one level, each round beginning with another; those of `TELLING` together, at up
    to `CLIENTS` clients each. Raises InvalidRunError."""
    alone = [way for way in ways if way.name not in TELLING]
    seen = [run_round(way, load, number, settings) for way in in_turn(alone, number)]
    together = [way for way in ways if way.name in TELLING]
    if together and load.clients <= CLIENTS:
        with ThreadPoolExecutor(len(together)) as pool:
            seen += pool.map(lambda way: run_round(way, load, number, settings), together)
    return seen


def in_turn(ways: Sequence[Way], number: int) -> list[Way]:
    """All of them, each round beginning with another."""
    first = number % len(ways)
    return [*ways[first:], *ways[:first]]


def run_round(way: Way, load: Level, number: int, settings: Settings) -> Sample:
    """One round of one way. Raises InvalidRunError."""
    task = Task(
        port=way.port,
        path=way.path,
        model=MODEL,
        clients=load.clients,
        requests=load.requests,
        tokens=load.tokens,
        spread_s=(settings.ttft_ms + settings.itl_ms * (load.tokens - 1)) / 1e3,
        marker=TOKEN.decode(),
    )
    own, others = CpuMeter(), CpuMeter()
    with own.measuring(way.pids), others.measuring(way.helpers(), may_end=True):
        seen = run_client(task)
        way.after()
    path_cpu_s = None
    if own.cpu_s is not None and others.cpu_s is not None:
        path_cpu_s = own.cpu_s + others.cpu_s
    return Sample(
        way=way.name,
        clients=load.clients,
        round=number,
        tokens=seen.tokens,
        streams=seen.streams,
        wall_s=seen.wall_s,
        client_cpu_s=seen.cpu_s,
        ttfts_s=seen.ttfts_s,
        cpu_s=own.cpu_s,
        path_cpu_s=path_cpu_s,
    )
