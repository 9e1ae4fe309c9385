"""Failures by class, per stage and variant."""

from loadtests.report.figures.style import CLASS_COLOURS, Picture, new_figure
from loadtests.report.result import CampaignResult
from loadtests.report.stages import stage_rows

HATCHES = ("", "////", "....", "xxxx")


def draw_errors(result: CampaignResult) -> Picture | None:
    """Stacked bars of the shares of planned requests; None where nothing failed."""
    rows = [
        (f"{row.stage}, {row.variant}" if not group.is_search else group.label(row), row)
        for group in stage_rows(result)
        for row in group.rows
        if row.errors and row.n_planned
    ]
    if not rows:
        return None
    classes = sorted({name for _, row in rows for name in row.errors})
    figure = new_figure(1.1 + 0.26 * len(rows))
    axes = figure.subplots()
    left = [0.0] * len(rows)
    for k, name in enumerate(classes):
        widths = [100 * row.errors.get(name, 0) / row.n_planned for _, row in rows]
        axes.barh(
            range(len(rows)), widths, left=left, height=0.66, label=name,
            color=CLASS_COLOURS[k % len(CLASS_COLOURS)],
            hatch=HATCHES[k // len(CLASS_COLOURS) % len(HATCHES)],
        )  # fmt: skip
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("% of the planned requests")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=min(6, len(classes)))
    return Picture(
        name="errors",
        title="Failures by class",
        caption="Rows without a failure are left out.",
        alt="Failed requests by error class in percent; the counts are in the summary tables.",
        figure=figure,
    )
