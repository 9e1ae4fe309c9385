"""Bars on the terminal while variants are made and checked; results are for stdout, not these."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from serve_app.quantize.making import Report

_DONE = {"quantizing": 0.0, "measuring": 1.0, "checking": 2.0}
"""Of three steps, by the first word of what is told; anything else is an end."""
_LAYER = re.compile(r"layer (\d+) of (\d+)")


@contextmanager
def progress(variants: Sequence[str]) -> Iterator[Report]:
    """One bar per variant: made, measured, checked. They go to stderr."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description:17}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bars:
        tasks = {name: bars.add_task(name, total=3, state="waiting") for name in variants}

        def report(variant: str, state: str) -> None:
            if variant not in tasks:
                bars.console.print(state)
                return
            done = _DONE.get(state.split()[0], 3.0)
            if layer := _LAYER.search(state):
                done += (int(layer[1]) - 1) / int(layer[2])
            shown = state.splitlines()[0][:60]
            bars.update(tasks[variant], completed=done, state=shown)

        yield report
