"""A plan as text that a person can read: what each variant takes, and who sits on which GPU."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from serve_app.domain.units import BP_TOTAL, GIB
from serve_app.fleet.layouts import Layout, layouts
from serve_app.fleet.plan import FleetPlan
from serve_app.planning.facts import Source
from serve_app.planning.footprint import Part
from serve_app.planning.plan import MemoryPlan

MARKS = {
    Source.MEASURED: "m",
    Source.HEADERS: "h",
    Source.CONFIG: "c",
    Source.ESTIMATED: "~",
}
LEGEND = (
    "GiB per GPU: h from tensor headers, c computed from config.json, m measured, ~ estimated; "
    "requests at full context"
)
MIN_WIDTH = 124
"""Columns that the table takes; narrower terminals wrap its lines."""
COLORS = ("blue", "green", "magenta", "cyan", "yellow", "red")
_BAR_CELLS = 60
_NAME_WIDTH = 20
_MOST_ROWS = 40


def fleet_table(fleet: FleetPlan) -> RenderableType:
    """The whole plan for the terminal."""
    return Group(_variants(fleet), Text(LEGEND, style="dim"), Text(), *_bars(fleet))


def _variants(fleet: FleetPlan) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("variant", no_wrap=True, max_width=_NAME_WIDTH)
    for name in ("scheme", "GPU"):
        table.add_column(name, no_wrap=True)
    for name in ("weights", "KV", "activ.", "graphs", "context", "margin", "need"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("fraction", "requests", "replicas"):
        table.add_column(name, justify="right", no_wrap=True)
    replicas = fleet.packing.replicas()
    for each in fleet.variants[:_MOST_ROWS]:
        plan = fleet.chosen(each.name)
        bounds = each.variant.bounds
        row = [each.name, each.variant.facts.scheme.describe()]
        if plan is None:
            table.add_row(*row, Text("fits none", style="red"))
            continue
        count = replicas.get(each.name, 0)
        span = f"{count} ({bounds.minimum}-{bounds.maximum})"
        table.add_row(*row, plan.gpu.name, *_numbers(plan), span)
    if len(fleet.variants) > _MOST_ROWS:
        table.add_row(f"... {len(fleet.variants) - _MOST_ROWS:,} more (--json has all)")
    return table


def _numbers(plan: MemoryPlan) -> Iterator[str]:
    parts = plan.footprint
    yield _part(parts.weights)
    yield _gib(plan.kv_cache_bytes)
    for part in (parts.activation, parts.cuda_graphs, parts.context, parts.margin):
        yield _part(part)
    yield _gib(plan.need_bytes)
    ranks = plan.sizes.tensor_parallel_size
    yield f"{plan.fraction:.4f}" if ranks == 1 else f"{ranks} GPUs"
    yield f"{plan.concurrency:.1f} x {plan.sizes.max_model_len:,}"


def _part(part: Part) -> str:
    return f"{_gib(part.bytes)}{MARKS[part.source]}"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f}"


def _bars(fleet: FleetPlan) -> Iterator[RenderableType]:
    colors = {each.name: COLORS[i % len(COLORS)] for i, each in enumerate(fleet.variants)}
    found = layouts(fleet.packing)
    for layout in found[:_MOST_ROWS]:
        line = Text(f"{layout.count:>5} x {layout.gpu:<10} ")
        line.append_text(_bar(layout, colors))
        yield line.append(f" {layout.used_bp / 100:.1f} %")
    if len(found) > _MOST_ROWS:
        yield Text(f"      ... {len(found) - _MOST_ROWS:,} more layouts (--json has all)")


def _bar(layout: Layout, colors: dict[str, str]) -> Text:
    bar, filled, done = Text(), 0, 0
    for share in layout.shares:
        for _ in range(share.count):
            done += share.share_bp
            width = round(done * _BAR_CELLS / BP_TOTAL) - filled
            filled += width
            if width:  # the last cell is a border, so that equal neighbours can be told apart
                label = f"{share.name[: max(width - 1, 0)]:<{width - 1}}"
                bar.append(f"{label}▏", style=f"black on {colors[share.name]}")
    return bar.append("·" * (_BAR_CELLS - filled), style="dim")
