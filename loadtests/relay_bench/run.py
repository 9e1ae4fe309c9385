"""One run of the benchmark: all ways, then a real engine. What broke off is kept, and says so."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from loadtests.relay_bench import engine as real_engine
from loadtests.relay_bench import report
from loadtests.relay_bench.budgets import Finding, judge
from loadtests.relay_bench.figures import figures
from loadtests.relay_bench.nouns import CLIENTS, DIRECT, HAPROXY, TELLING, Sample, Way
from loadtests.relay_bench.otlp_sink import otlp_sink, require_spans
from loadtests.relay_bench.parts import PartsSample, levels, measure_parts
from loadtests.relay_bench.processes import plain_haproxy, upstream
from loadtests.relay_bench.rounds import Settings, rounds, run_round
from loadtests.relay_bench.upstream import CHAT
from serve_app.domain.errors import InvalidRunError, QuantileError


@dataclass
class Measured:
    """What there is so far."""

    ways: list[str] = field(default_factory=list)
    """Their names, in the order of the tables."""
    samples: list[Sample] = field(default_factory=list)
    parts: list[PartsSample] = field(default_factory=list)
    engine: list[real_engine.EngineRound] = field(default_factory=list)
    broke_off: str | None = None
    """Why it is not all; None: it is."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to keep."""
        return not (self.samples or self.parts or self.engine)

    def in_order(self) -> tuple[list[Sample], list[PartsSample]]:
        """Samples and parts, by way."""
        return (
            sorted(self.samples, key=lambda each: self.ways.index(each.way)),
            sorted(self.parts, key=lambda each: self.ways.index(each.way)),
        )


def run(settings: Settings, folder: Path, console: Console) -> list[Finding]:
    """Measure everything, print it and write it into `folder`; returns the budgets.

    What was measured before an error is written too, without a verdict on any budget.
    Raises BuildError, ConfigError, EngineError, InvalidRunError.
    """
    started_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    measured = Measured()
    try:
        _measure(settings, folder, console, measured)
    except BaseException as error:
        measured.broke_off = str(error) if isinstance(error, QuantileError) else repr(error)
        if not measured.is_empty:
            _tell(started_at, settings, folder, console, measured)
        raise
    return _tell(started_at, settings, folder, console, measured)


def _measure(settings: Settings, folder: Path, console: Console, measured: Measured) -> None:
    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    if not settings.engine_only:
        with console.status("starting the ways"), all_ways(settings, folder) as ways:
            measured.ways = [way.name for way in ways]
            for samples in rounds(ways, settings, tell):
                measured.samples += samples
            if settings.tracing:
                _require_spans(folder, measured)
            if settings.parts:
                alone = [way for way in ways if way.name not in TELLING]
                for number in range(1, settings.rounds + 1):
                    for part in measure_parts(
                        alone,
                        levels(CLIENTS, settings.tokens),
                        number,
                        lambda way, level: run_round(way, level, 0, settings),
                    ):
                        measured.parts.append(part)
                    tell(f"rest, answers of three lengths: round {number} of {settings.rounds}")
    if settings.engine is not None:
        with (
            console.status(f"loading a real engine, variant {settings.engine}"),
            contextlib.closing(real_engine.measure(settings, folder)) as engine_rounds,
        ):
            for each in engine_rounds:
                measured.engine.append(each)
                tell(
                    f"real engine, round {len(measured.engine)} of {settings.engine_rounds}: "
                    f"{each.of_direct:.3f} of direct's {each.direct_tokens_per_s:.0f} tokens/s"
                )


def _require_spans(folder: Path, measured: Measured) -> None:
    """No figures of traces that were not sent. Raises InvalidRunError."""
    try:
        require_spans(folder, measured.samples)
    except InvalidRunError:
        measured.samples = [each for each in measured.samples if each.way not in TELLING]
        raise


def _tell(
    started_at: str, settings: Settings, folder: Path, console: Console, measured: Measured
) -> list[Finding]:
    samples, parts = measured.in_order()
    found, ratio = figures(samples), real_engine.of_direct(measured.engine)
    document = report.Document(
        schema_version=report.SCHEMA_VERSION,
        date=started_at,
        machine=report.machine(),
        settings=asdict(settings),
        figures=found,
        engine=measured.engine,
        engine_of_direct=ratio,
        findings=judge(found, ratio) if measured.broke_off is None else [],
        samples=samples,
        parts=parts,
        broke_off=measured.broke_off,
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
