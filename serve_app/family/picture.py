"""The family as a picture: what each variant weighs, and what it lost."""

from collections.abc import Sequence
from pathlib import Path

from serve_app.domain.quality import Estimate
from serve_app.family.table import Row

_COLOURS = {"vllm": "#1f6feb", "llamacpp": "#d97706", "vllm, twin": "#8b949e"}
_LABELS = {
    "vllm": "vLLM",
    "llamacpp": "llama.cpp",
    "vllm, twin": "its dense twin in vLLM: no kernel here",
}


def draw(table: Sequence[Row], path: Path) -> None:
    """Write a PNG, a line per variant, the smallest first: bytes, and mean |delta logprob|."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = sorted(table, key=lambda row: row.bytes_ratio)
    lines = range(len(rows))
    figure = Figure(figsize=(10, 1.6 + 0.24 * len(rows)), layout="constrained")
    size, damage = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    size.barh(lines, [row.bytes_ratio for row in rows], color=[_COLOURS[r.engine] for r in rows])
    size.set_yticks(lines, [row.name for row in rows], fontsize=8)
    size.set_ylim(len(rows) - 0.4, -0.6)
    size.set_xlabel("bytes of the checkpoint, baseline = 1")
    for line, row in enumerate(rows):
        if (found := _damage(row)) is not None:
            low = found.value if found.low is None else found.low
            high = found.value if found.high is None else found.high
            damage.plot([low, high], [line, line], color=_COLOURS[row.engine], linewidth=2)
            damage.plot(found.value, line, "o", color=_COLOURS[row.engine], markersize=4)
    damage.set_xscale("log")
    damage.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    damage.xaxis.set_major_formatter("{x:g}")
    damage.xaxis.set_minor_formatter(NullFormatter())
    damage.set_xlabel("mean |Δ logprob| against the baseline, nats, 95 % intervals")
    for axes in (size, damage):
        axes.grid(axis="x", which="both", alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    engines = dict.fromkeys(row.engine for row in rows)
    keys = [Patch(color=_COLOURS[engine], label=_LABELS[engine]) for engine in engines]
    figure.legend(handles=keys, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def _damage(row: Row) -> Estimate | None:
    """None for the baseline, and where no log-probabilities could be had."""
    likelihood = row.quality.likelihood if row.quality else None
    agreement = likelihood.agreement if likelihood else None
    return agreement.abs_delta_logprob if agreement else None
