"""`quantile bench overhead`: what the router costs, beside other ways to relay the same stream."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtests.relay_bench.budgets import CLIENTS, Finding, Verdict, judge
from loadtests.relay_bench.client import Task
from loadtests.relay_bench.cpu import CpuMeter
from loadtests.relay_bench.figures import figures
from loadtests.relay_bench.nouns import DIRECT, HAPROXY, TELLING, Level, Sample, Way
from loadtests.relay_bench.otlp_sink import otlp_sink, require_spans
from loadtests.relay_bench.processes import plain_haproxy, run_client, upstream
from loadtests.relay_bench.upstream import CHAT, MODEL, TOKEN
from serve_app.domain.errors import ConfigError

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
    engine_only: bool = False


def level(clients: int, tokens: int) -> Level:
    """The load of one round at so many clients: about `SAMPLES_PER_ROUND` counted streams."""
    requests = min(MAX_REQUESTS, max(1, -(-SAMPLES_PER_ROUND // clients)))
    return Level(clients, requests, tokens if clients > 1 else min(tokens, SOLO_TOKENS))


def overhead(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved; a warm-up comes before.")] = 3,
    clients: Annotated[list[int], typer.Option(min=1, help="May be repeated.")] = [  # noqa: B006
        *(1, 16, 64, 256)
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 64,
    ttft_ms: Annotated[float, typer.Option(min=0, help="The variant's time to first token.")] = 50,
    itl_ms: Annotated[float, typer.Option(min=0.1, help="The variant's time per token.")] = 10,
    steps: Annotated[
        bool,
        typer.Option(
            help="The tokens of all streams at the same moments, as engines that batch send them; "
            "else each stream at its own."
        ),
    ] = False,
    peers: Annotated[
        bool,
        typer.Option(
            help="Also LiteLLM's proxy and SGLang's gateway, installed by pip into environments "
            "of their own under ~/.cache/quantile (the first time; about 1 GB)."
        ),
    ] = False,
    tracing: Annotated[
        bool,
        typer.Option(
            help="Also the router with metrics and traces, of each request and of one in a "
            "hundred, and with the request log, at the same time as one that tells nothing."
        ),
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(help="Also a real engine's throughput: a variant of --engine-config."),
    ] = None,
    engine_config: Annotated[Path, typer.Option(help="A Serve config file.")] = Path(
        "configs/local.yaml"
    ),
    engine_rounds: Annotated[
        int, typer.Option(min=1, help="Below 6 nothing is decided of the engine.")
    ] = 10,
    engine_only: Annotated[
        bool, typer.Option("--engine-only", help="With --engine: nothing else is measured.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; default reports/overhead-<time>.")
    ] = None,
) -> None:
    """Measure what the router costs: CPU per token, added TTFT, streams/s, side by side.

    Ways: direct, one HAProxy pass, the router in a Serve replica, the same behind Serve's ingress,
    the same over Serve handles, and on request its peers. It runs a Serve of its own, beside any
    other. Exit status: 1 a budget is missed, else 0. The engine's is kept or missed only where the
    whole 95 % interval of its rounds is on that side of the limit; else it is not decided.

    Examples:

    quantile bench overhead

    quantile bench overhead --peers --engine gptq --rounds 5

    quantile bench overhead --engine gptq --engine-only

    quantile bench overhead --tracing --clients 16
    """
    if engine_only and engine is None:
        raise ConfigError("--engine-only needs --engine: a variant of --engine-config")
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = (out or Path("reports") / f"overhead-{stamp}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        *(rounds, tuple(clients), tokens, ttft_ms, itl_ms, steps),
        *(peers, engine, str(engine_config), tracing, engine_rounds, engine_only),
    )
    findings = run(settings, folder, Console())
    raise typer.Exit(int(any(each.verdict is Verdict.MISSED for each in findings)))


def run(settings: Settings, folder: Path, console: Console) -> list[Finding]:
    """Measure everything, print it and write it into `folder`; returns the budgets.

    Raises BuildError, ConfigError, EngineError, InvalidRunError.
    """
    from loadtests.relay_bench import engine, report

    started_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    samples: list[Sample] = []
    if not settings.engine_only:
        with console.status("starting the ways"), all_ways(settings, folder) as ways:
            samples = measure(ways, settings, console)
            if settings.tracing:
                require_spans(folder, samples)
    engine_rounds = []
    if settings.engine is not None:
        with console.status(f"loading a real engine, variant {settings.engine}"):
            engine_rounds = engine.measure(
                Path(settings.engine_config),
                settings.engine,
                folder,
                rounds=settings.engine_rounds,
                tokens=settings.tokens,
            )
    ratio = engine.of_direct(engine_rounds)
    found = figures(samples)
    document = report.Document(
        schema_version=report.SCHEMA_VERSION,
        date=started_at,
        machine=report.machine(),
        settings=asdict(settings),
        figures=found,
        engine=engine_rounds,
        engine_of_direct=ratio,
        findings=judge(found, ratio),
        samples=samples,
    )
    report.write(document, folder)
    report.print_document(document, console)
    console.print(f"{folder / 'overhead.md'}, overhead.json", markup=False, highlight=False)
    return document.findings


@contextlib.contextmanager
def all_ways(settings: Settings, folder: Path) -> Iterator[list[Way]]:
    """Start everything; yields the ways. All of it ends with the block."""
    from loadtests.relay_bench.apps import serve_ways
    from loadtests.relay_bench.peers import PEERS, peer_way

    with contextlib.ExitStack() as stack:
        port = stack.enter_context(
            upstream(folder, settings.ttft_ms, settings.itl_ms, in_steps=settings.steps)
        )
        yardstick_port, yardstick_pid = stack.enter_context(plain_haproxy(folder, port))
        pass_port, pass_pid = stack.enter_context(plain_haproxy(folder, port))
        ways = [Way(DIRECT, port, CHAT), Way(HAPROXY, yardstick_port, CHAT, (yardstick_pid,))]
        sink_port = stack.enter_context(otlp_sink(folder)) if settings.tracing else None
        ways += stack.enter_context(serve_ways(port, pass_port, pass_pid, sink_port))
        if settings.peers:
            ways += [stack.enter_context(peer_way(peer, port, folder)) for peer in PEERS]
        yield ways


def measure(ways: Sequence[Way], settings: Settings, console: Console) -> list[Sample]:
    """Rounds over all ways; the first is a warm-up.

    Raises InvalidRunError when a stream failed or came short.
    """
    samples = []
    for number in range(settings.rounds + 1):
        start_s = time.monotonic()
        for clients in settings.clients:
            load = level(clients, settings.tokens) if number else Level(clients, 1, 8)
            seen = one_round(ways, load, number, settings)
            if number:
                samples += seen
        told = f"round {number} of {settings.rounds}" if number else "warm-up"
        console.print(f"{told}: {time.monotonic() - start_s:.0f} s", highlight=False)
    return [s for way in ways for s in samples if s.way == way.name]


def one_round(ways: Sequence[Way], load: Level, number: int, settings: Settings) -> list[Sample]:
    """Every way at one level, each round beginning with another; those of `TELLING` together, at up
    to `CLIENTS` clients each. Raises InvalidRunError."""
    alone = [way for way in ways if way.name not in TELLING]
    first = number % len(alone)
    seen = [run_round(way, load, number, settings) for way in alone[first:] + alone[:first]]
    together = [way for way in ways if way.name in TELLING]
    if together and load.clients <= CLIENTS:
        with ThreadPoolExecutor(len(together)) as pool:
            seen += pool.map(lambda way: run_round(way, load, number, settings), together)
    return seen


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
