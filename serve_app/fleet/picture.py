"""A picture of the GPUs as stacked bars: whose bytes lie where. The only module here that draws."""

from pathlib import Path
from typing import Any

from serve_app.domain.errors import ConfigError
from serve_app.domain.units import GIB
from serve_app.fleet.layouts import Layout, layouts
from serve_app.fleet.plan import FleetPlan
from serve_app.planning.plan import MemoryPlan

PARTS = {
    "weights": (1.0, ""),
    "KV cache": (0.45, ""),
    "activation, graphs, context, margin": (0.2, "////"),
}
"""What a replica's bytes are for: opacity and hatching of its segments."""
_MOST_BARS = 24


def draw_fleet(fleet: FleetPlan, path: Path) -> None:
    """Write the picture to `path`; the format follows its suffix (PNG, SVG, PDF).

    Raises ConfigError for a path that cannot be written, or a suffix that is none of these.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = layouts(fleet.packing)[:_MOST_BARS]
    figure = Figure(figsize=(11, 1.9 + 0.62 * max(len(shown), 1)), layout="constrained")
    axes = figure.subplots()
    palette = mpl.color_sequences["tab10"]
    colors = {each.name: palette[index % len(palette)] for index, each in enumerate(fleet.variants)}
    for row, layout in enumerate(shown):
        _draw_gpu(axes, row, layout, fleet, colors)
    axes.set_yticks(range(len(shown)), [f"{each.count} x {each.gpu}" for each in shown])
    axes.invert_yaxis()
    axes.set_xlabel("GiB of one GPU")
    axes.set_title(_title(fleet), loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        handles=[
            mpl.patches.Patch(facecolor="#555555", edgecolor="white", alpha=alpha, hatch=hatch)
            for alpha, hatch in PARTS.values()
        ],
        labels=list(PARTS),
        loc="outside lower left",
        ncols=len(PARTS),
        frameon=False,
    )
    try:
        figure.savefig(path, dpi=140)
    except (OSError, ValueError) as error:  # no such folder, no such format
        raise ConfigError(f"cannot draw {path}: {error}") from None


def _title(fleet: FleetPlan) -> str:
    used = sum(use.needed_gpus for use in fleet.packing.types)
    placed = sum(fleet.packing.replicas().values())
    return f"{placed} replicas of {len(fleet.variants)} variants; the minimum needs {used} GPUs"


def _draw_gpu(
    axes: Any, row: int, layout: Layout, fleet: FleetPlan, colors: dict[str, Any]
) -> None:
    gpu = fleet.gpus[layout.gpu]
    axes.barh(row, gpu.total_bytes / GIB, height=0.72, color="none", edgecolor="#999999")
    axes.barh(
        row, gpu.reserved_bytes / GIB, left=gpu.usable_bytes / GIB, height=0.72, color="#dddddd"
    )
    left = 0
    for share in layout.shares:
        plan = fleet.chosen(share.name)
        if plan is None:
            continue
        for _ in range(share.count):
            _draw_replica(axes, row, left, plan, colors[share.name])
            left += plan.need_bytes


def _draw_replica(axes: Any, row: int, left: int, plan: MemoryPlan, color: Any) -> None:
    weights = plan.footprint.weights.bytes
    rest = plan.need_bytes - weights - plan.kv_cache_bytes
    start = left
    for n_bytes, (alpha, hatch) in zip(
        (weights, plan.kv_cache_bytes, rest), PARTS.values(), strict=True
    ):
        axes.barh(
            row,
            n_bytes / GIB,
            left=start / GIB,
            height=0.72,
            color=color,
            alpha=alpha,
            hatch=hatch,
            edgecolor="white",
        )
        start += n_bytes
    axes.barh(
        row, plan.need_bytes / GIB, left=left / GIB, height=0.72, color="none", edgecolor="black"
    )
    middle = left + plan.need_bytes / 2
    if plan.need_bytes > 0.03 * plan.gpu.total_bytes:
        axes.text(middle / GIB, row - 0.42, plan.variant, ha="center", va="bottom", fontsize=8)
