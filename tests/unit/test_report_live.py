"""The live view: what it says, how often, and that it leaves the terminal as it was."""

import io

import pytest
from rich.console import Console

from loadtests.records.progress import Progress
from loadtests.report.live import LINE_EVERY_S, Eta, LiveView, done_cells, drawn, duration, line_of

NS_PER_S = 1_000_000_000


def progress(t_s: float = 10, **changes: object) -> Progress:
    plain = {
        "t_ns": round(t_s * NS_PER_S), "phase": "running", "cells_done": 1, "n_cells": 4,
        "stage": "heavy", "block": 1, "variant": "[red]awq", "rate_per_s": 8.0, "cell_over": 10,
        "cell_planned": 20, "over": 30, "failed": 2, "in_flight": 5, "ttft_ms": (31.0, 48.25),
    }  # fmt: skip
    return Progress(**(plain | changes))


def test_a_line_has_all_of_it():
    line = line_of(progress(), 65)
    for part in (
        "0:10", "running", "cell 1/4", "heavy, block 2, [red]awq, 8/s", "30 over", "2 failed",
        "5 in flight", "P50 31.0, P95 48.2 ms", "1:05 left",
    ):  # fmt: skip
        assert part in line, part
    bare = Progress(t_ns=0, phase="waiting for workers")
    assert line_of(bare, None) == (
        "0:00  waiting for workers  cell 0  0 over, 0 failed, 0 in flight  TTFT -"
    )


def test_the_time_left_counts_from_the_first_cell():
    eta = Eta()
    eta.observe(progress(30, phase="preparing", cells_done=0, cell_over=0))
    eta.observe(progress(40, cells_done=0, cell_over=0))
    assert eta.left_s(progress(40, cells_done=0, cell_over=0)) is None
    now = progress(55)  # one and a half cells in 15 s, two and a half to go
    eta.observe(now)
    assert eta.left_s(now) == pytest.approx(25)
    assert eta.left_s(progress(80, cells_done=4, cell_over=20)) == 0
    assert eta.left_s(progress(55, n_cells=None)) is None


def test_a_cell_is_never_more_than_done():
    assert done_cells(progress(cell_over=25)) == 2
    assert done_cells(progress(cells_done=4, cell_over=20)) == 4
    assert done_cells(progress(cell_planned=0, cell_over=99)) == 1
    assert done_cells(progress(n_cells=None, cells_done=9)) == 9.5


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_without_a_terminal_it_prints_a_line_now_and_then():
    out, now = io.StringIO(), [0.0]
    with LiveView(Console(file=out, width=60), clock=lambda: now[0]) as view:
        for _ in range(3):
            view.show(progress())
        now[0] += LINE_EVERY_S
        view.show(progress())
        view.show(progress(phase="stopping"))
        view.show(progress(phase="stopping"))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert "[red]awq" in lines[0] and "stopping" in lines[2]


def show_and_stop(console):
    with LiveView(console) as view:
        view.show(progress())
        raise KeyboardInterrupt


def test_on_a_terminal_it_draws_and_restores_the_cursor_even_on_an_error():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with pytest.raises(KeyboardInterrupt):
        show_and_stop(console)
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert out.getvalue().rfind(shown) > out.getvalue().rfind(hidden) >= 0
    with LiveView(console):
        pass  # rich refuses a second live display beside one that was not stopped


@pytest.mark.parametrize("n_cells", [4, None])
def test_the_drawing_fits_and_shows_names_as_they_are(n_cells):
    out = io.StringIO()
    Console(file=out, width=80).print(drawn(progress(n_cells=n_cells, n_workers=3), 65))
    text = out.getvalue()
    assert "[red]awq" in text and "3 load processes" in text and "10 of 20 in this cell" in text
    assert "about 1:05 left" in text and len(text.splitlines()) == 5
    assert max(map(len, text.splitlines())) <= 80
