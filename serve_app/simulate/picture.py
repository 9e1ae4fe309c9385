"""A load as a picture: requests, shares, P95 of TTFT and expected quality over time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.domain.errors import ConfigError
from serve_app.simulate.engine import Job
from serve_app.simulate.outcome import rank
from serve_app.simulate.run import Played
from serve_app.simulate.study import Answer, Question

COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#cc79a7", "#009e73", "#111111")
_MUTED, _BAD = "#6b6b75", "#c02030"
_SLICES = 60


@dataclass(frozen=True)
class Scene:
    """What is drawn: one load under a ladder and under a fixed choice, simulated or real."""

    rungs: Sequence[str]
    """Best first."""
    quality: Mapping[str, float]
    ttft_limit_s: float | None
    """None: no limit."""
    ladder: Played
    fixed: Played
    fixed_name: str


def draw(question: Question, found: Answer, path: Path) -> None:
    """Write the picture of a simulation to `path`. Raises ConfigError as `draw_scene` does."""
    draw_scene(
        Scene(
            rungs=question.config.rungs,
            quality=question.quality,
            ttft_limit_s=question.limits().ttft_s,
            ladder=found.played,
            fixed=found.played_fixed,
            fixed_name=found.fixed.name,
        ),
        path,
    )


def draw_scene(scene: Scene, path: Path) -> None:
    """Write the picture to `path`; the format follows its suffix (PNG, SVG, PDF).

    Raises ConfigError for a path that cannot be written, or a suffix that is none of these.
    """
    from matplotlib.figure import Figure

    end_s = max(job.arrived_s for job in scene.ladder.jobs)
    slice_s = max(1.0, end_s / _SLICES)
    figure = Figure(figsize=(9.6, 8.4), layout="constrained")
    load, shares, ttft, quality = figure.subplots(4, 1, sharex=True)
    _draw_load(load, scene.ladder, scene.rungs, slice_s)
    _draw_shares(shares, scene.ladder, scene.rungs, end_s)
    _draw_ttft(ttft, scene, slice_s)
    _draw_quality(quality, scene, slice_s)
    quality.set_xlabel("seconds")
    quality.set_xlim(0, end_s)
    for axes in (load, shares, ttft, quality):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dcdce2", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.98), fontsize=8, ncols=4)
    try:
        figure.savefig(path, dpi=140, metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError) as error:  # no such folder, no such format
        raise ConfigError(f"cannot draw {path}: {error}") from None


def _draw_load(axes: Any, played: Played, rungs: Sequence[str], slice_s: float) -> None:
    slices = _slices(played, slice_s)
    at_s = [(index + 0.5) * slice_s for index in range(len(slices))]
    rates = [[sum(j.variant == name for j in jobs) / slice_s for jobs in slices] for name in rungs]
    axes.stackplot(at_s, rates, labels=rungs, colors=COLOURS, alpha=0.75)
    axes.set_title("requests per second, by the variant that served them", loc="left", fontsize=9)


def _draw_shares(axes: Any, played: Played, rungs: Sequence[str], end_s: float) -> None:
    at_s = [at for at, _ in played.shares]
    for index, name in enumerate(rungs):
        values = [shares[name] / 100 for _, shares in played.shares]
        axes.step(
            [*at_s, max(end_s, at_s[-1])],
            [*values, values[-1]],
            where="post",
            label=name,
            color=COLOURS[index % len(COLOURS)],
        )
    axes.set_ylim(-3, 103)
    axes.set_title("the ladder's shares, %", loc="left", fontsize=9)


def _draw_ttft(axes: Any, scene: Scene, slice_s: float) -> None:
    limit_s = scene.ttft_limit_s
    for played, name, colour in (
        (scene.fixed, scene.fixed_name, _MUTED),
        (scene.ladder, "ladder", COLOURS[0]),
    ):
        slices = _slices(played, slice_s)
        p95s = [rank([job.ttft_s for job in jobs], 0.95) for jobs in slices]
        at_s = [(index + 0.5) * slice_s for index in range(len(slices))]
        values = [math.nan if p95 is None else 1000 * p95 for p95 in p95s]
        axes.plot(at_s, values, label=name, color=colour)
    if limit_s is not None:
        axes.axhline(1000 * limit_s, color=_BAD, linewidth=1, linestyle="--", label="SLO")
    axes.set_yscale("log")
    axes.set_title("TTFT P95 of requests by their arrival, ms", loc="left", fontsize=9)


def _draw_quality(axes: Any, scene: Scene, slice_s: float) -> None:
    slices = _slices(scene.ladder, slice_s)
    at_s = [(index + 0.5) * slice_s for index in range(len(slices))]
    means = [
        sum(scene.quality[job.variant] for job in jobs) / len(jobs) if jobs else math.nan
        for jobs in slices
    ]
    axes.plot(at_s, means, label="ladder", color=COLOURS[0])
    for index, name in enumerate(scene.rungs):
        colour = COLOURS[index % len(COLOURS)]
        axes.axhline(scene.quality[name], color=colour, linewidth=0.8, linestyle=":")
    axes.set_title("expected quality (dotted: each variant's)", loc="left", fontsize=9)


def _slices(played: Played, slice_s: float) -> list[list[Job]]:
    found: list[list[Job]] = []
    for job in played.jobs:
        index = int(job.arrived_s / slice_s)
        while len(found) <= index:
            found.append([])
        found[index].append(job)
    return found
