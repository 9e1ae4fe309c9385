"""`report.md`: every number with its formula, its interval and its sample."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from loadtests.analyse import summary as definitions
from loadtests.campaign import Campaign
from loadtests.records.manifest import Manifest
from loadtests.report.rows import HEADERS, cells_of, number, with_interval
from loadtests.analyse.summary import METRICS, PERCENTILES, VariantSummary

_STATISTICS = """\
Percentiles are exact: the ceil(p n)-th smallest of the raw samples, never interpolated, never
averaged over cells. `-` means that the sample does not support the percentile (P95 needs 20,
P99 100, P99.9 1000 requests). Intervals are 95 % order-statistic intervals on
n (1 - r) / (1 + r) effective samples, r the lag-1 autocorrelation; `…` is a bound that the
sample does not have. A failure-aware percentile counts each failed request as infinite.
A row is invalid when the client shaped it: it lagged behind its plan, did not send what was
planned, used too much of its core, or its records contradict its own count (Little's law).
"""


def render_markdown(
    manifest: Manifest,
    campaign: Campaign,
    summaries: Sequence[VariantSummary],
    status: str,
    pictures: Sequence[Path],
) -> str:
    """The report as Markdown; pictures are linked by file name."""
    parts = [f"# Load campaign: {campaign.target.model}", f"**{status}.**"]
    parts.append(f"Started {manifest.started_at} on {_host(manifest)}.")
    for stage in campaign.stages:
        rows = [each for each in summaries if each.stage == stage.name]
        if not rows:
            continue
        parts.append(f"## {stage.name}: {stage.kind} {stage.rate_per_s:g} requests/s")
        parts.append(_overview(manifest, rows))
        parts.append("### Latencies, ms, with 95 % intervals")
        parts.append(_latencies(rows))
        parts.append("### The client")
        parts.append(_client(rows))
    parts += [f"![{each.stem}]({each.name})" for each in pictures]
    parts += ["## Definitions", _definitions(), _STATISTICS, "## Campaign"]
    text = yaml.safe_dump(campaign.model_dump(mode="json"), sort_keys=False)
    parts.append(f"```yaml\n{text}```")
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _overview(manifest: Manifest, rows: Sequence[VariantSummary]) -> str:
    header = ("variant", *manifest.columns, *HEADERS, "goodput/s", "failed")
    body = []
    for row in rows:
        extra = [cells.get(row.variant, "-") for cells in manifest.columns.values()]
        failed = ", ".join(f"{name} {n}" for name, n in row.errors.items()) or "0"
        body.append((row.variant, *extra, *cells_of(row), number(row.goodput_per_s), failed))
    return _table(header, body)


def _latencies(rows: Sequence[VariantSummary]) -> str:
    header = ("variant", "metric", "n", *(f"P{p * 100:g}" for p in PERCENTILES))
    body = []
    for row in rows:
        for name in METRICS:
            latency = row.latencies[name]
            n = latency.quantiles[0].n
            cells = (with_interval(q) for q in latency.quantiles)
            body.append((row.variant, name, str(n), *cells))
            if latency.with_failures is not None and row.n_ok < row.n_planned:
                aware = (with_interval(q) for q in latency.with_failures)
                body.append((row.variant, f"{name}, failures infinite", str(row.n_planned), *aware))
    return _table(header, body)


def _client(rows: Sequence[VariantSummary]) -> str:
    header = ("variant", "offered/s", "sent/s", "CPU", "Little gap", "most in flight", "verdict")
    body = [
        (
            row.variant,
            f"{row.offered_per_s:.2f}",
            f"{row.achieved_per_s:.2f}",
            "-" if row.client_cpu_share is None else f"{row.client_cpu_share:.0%}",
            "-" if row.little_gap is None else f"{row.little_gap:.2%}",
            str(row.peak_in_flight),
            "valid" if row.is_valid else "INVALID: " + "; ".join(row.invalid_reasons),
        )
        for row in rows
    ]
    return _table(header, body)


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines)


def _definitions() -> str:
    """The formulas, from the docstring of the module that computes them."""
    text = definitions.__doc__ or ""
    formulas = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return "```\n" + "\n".join(formulas) + "\n```"


def _host(manifest: Manifest) -> str:
    host = manifest.host
    return (
        f"{host.get('machine')} with {host.get('cpus')} CPUs, Python {host.get('python')}, "
        f"Locust {host.get('locust')}"
    )
