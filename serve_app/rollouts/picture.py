"""The evidence over the rollout, drawn."""

import math

from matplotlib.ticker import FuncFormatter, NullFormatter

from loadtests.report.figures.style import (
    BAD,
    MUTED,
    Picture,
    add_legend,
    colour_of,
    line_of,
    new_figure,
)
from serve_app.config.rollout import RolloutConfig
from serve_app.rollouts.state import RolloutState


def draw_evidence(config: RolloutConfig, state: RolloutState) -> Picture | None:
    """E-values over the requests of the candidate. None before the first look. Within `style()`."""
    if not state.points:
        return None
    guards = list(dict.fromkeys(name for point in state.points for name in point.margins))
    needed = -math.log10(config.alpha)
    n = [point.n for point in state.points]
    figure = new_figure(5.4)
    against, margins = figure.subplots(2, 1, sharex=True)
    against.plot(n, [10 ** _bounded(point.against) for point in state.points], color=BAD)
    against.set_title("e-value against the candidate: all guards and steps together")
    for i, name in enumerate(guards):
        line = [10 ** _bounded(point.margins.get(name, math.nan)) for point in state.points]
        margins.plot(n, line, color=colour_of(i), linestyle=line_of(i))
    margins.set_title("e-value for each guard's margin being kept, in the step that is on")
    margins.set_xlabel("requests of the candidate")
    for axes in (against, margins):
        axes.set_yscale("log")
        # the style has mathematical text off, as names may hold dollar signs
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.axhline(10**needed, color=MUTED, linestyle=":")
        for before, after in zip(state.points, state.points[1:], strict=False):
            if after.step != before.step:
                axes.axvline(before.n, color=MUTED, linewidth=0.8)
    add_legend(figure, guards, has_lines=True)
    return Picture(
        name="evidence",
        title="Evidence over the rollout",
        caption=f"Dotted: 1/alpha = {1 / config.alpha:,.0f}. Above it at any time, the upper line "
        "rolls the candidate back; each lower line has to reach it once in a step that asks for "
        "evidence. Vertical lines: the next step began.",
        alt="E-values against the candidate and for each guard's margin, over requests.",
        figure=figure,
    )


def _bounded(log_value: float) -> float:
    """What can be drawn: a broken candidate reaches 10 to the power of hundreds."""
    return math.nan if math.isnan(log_value) else max(-6.0, min(12.0, log_value))
