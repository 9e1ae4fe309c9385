"""What load costs: the tail against throughput, and goodput against what was offered."""

import math
from collections.abc import Sequence
from typing import Any

from loadtests.analyse.nouns import VariantSummary
from loadtests.report.figures.style import (
    MUTED,
    Picture,
    add_legend,
    colour_of,
    marker_of,
    new_figure,
)
from loadtests.report.result import CampaignResult
from loadtests.report.rows import percentile_name
from loadtests.report.stages import variants_of

TAILS = (0.99, 0.95, 0.50)


def draw_load(result: CampaignResult) -> Picture | None:
    """Tail TTFT and E2E against output tokens per second; goodput against the offered rate."""
    rows = result.summaries
    if not rows:
        return None
    p = _tail(rows)
    variants = variants_of(result)
    figure = new_figure(3.5)
    ttft, e2e, rate = figure.subplots(1, 3)
    for i, variant in enumerate(variants):
        mine = sorted((r for r in rows if r.variant == variant), key=lambda r: r.offered_per_s)
        _line(ttft, [(r.output_tokens_per_s, _at(r, "ttft_user_ms", p)) for r in mine], i)
        _line(e2e, [(r.output_tokens_per_s, _at(r, "e2e_user_ms", p)) for r in mine], i)
        _line(rate, [(r.offered_per_s, _rate(r)) for r in mine], i)
    name = percentile_name(p)
    has_slo = any(r.goodput_per_s is not None for r in rows)
    for axes, title in ((ttft, f"TTFT {name}, ms"), (e2e, f"E2E {name}, ms")):
        axes.set(title=title, xlabel="output tokens/s")
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])  # crosses are above all marks
    what = "goodput" if has_slo else "answered"
    rate.set(title=f"{what}, requests/s", xlabel="offered requests/s")
    most = max(r.offered_per_s for r in rows)
    rate.plot([0, most], [0, most], color=MUTED, linestyle=":", linewidth=1)
    rate.set_ylim(bottom=0)
    add_legend(figure, variants, linestyle="-")
    return Picture(
        name="load",
        title="Throughput against the tail",
        caption=f"One point per stage. {name} counts failures as infinite: crosses at the upper "
        f"edge. The dotted line is where all that is offered is {what}.",
        alt=f"TTFT and E2E {name} against output tokens per second, and {what} requests per "
        "second against the offered rate, one line per variant.",
        figure=figure,
    )


def _tail(rows: Sequence[VariantSummary]) -> float:
    """The highest percentile that more than half of the rows support."""
    for p in TAILS:
        if sum(not math.isnan(_at(row, "ttft_user_ms", p)) for row in rows) * 2 > len(rows):
            return p
    return TAILS[-1]


def _at(row: VariantSummary, metric: str, p: float) -> float:
    """The failure-aware percentile; NaN where the sample does not support it."""
    quantiles = row.latencies[metric].with_failures or row.latencies[metric].quantiles
    value = next((q.value for q in quantiles if q.p == p), None)
    return math.nan if value is None else value


def _rate(row: VariantSummary) -> float:
    return row.n_ok / row.window_s if row.goodput_per_s is None else row.goodput_per_s


def _line(axes: Any, points: Sequence[tuple[float, float]], i: int) -> None:
    known = [point for point in points if math.isfinite(point[1])]
    axes.plot(*zip(*known, strict=True) if known else ([], []), color=colour_of(i),
              marker=marker_of(i), markersize=5)  # fmt: skip
    for x, y in points:
        if math.isinf(y):
            look = {"color": colour_of(i), "transform": axes.get_xaxis_transform()}
            axes.plot([x], [0.97], marker="x", **look)
            axes.text(x, 0.97, "  ∞", va="center", **look)
