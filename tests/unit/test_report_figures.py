"""What figures draw where numbers are missing, infinite, or known on one side only."""

import math
from dataclasses import replace

import msgspec
import pytest

from loadtests.analyse.stats import Quantile
from loadtests.records.manifest import MetricSample
from loadtests.report.figures.ecdf import draw_ecdf
from loadtests.report.figures.knee import draw_knee
from loadtests.report.figures.load import draw_load
from loadtests.report.figures.percentiles import draw_percentiles
from loadtests.report.figures.scraped import draw_scraped
from loadtests.report.figures.style import COLOURS, MUTED, style
from loadtests.report.result import read_result, read_run, result_of
from loadtests.report.samples import Samples
from tests.fakes import run_folders
from tests.fakes.run_folders import campaign, write_run, write_search

STAGE = {"name": "s", "kind": "poisson", "rate_per_s": 15, "duration_s": 2}


@pytest.fixture(autouse=True, scope="module")
def styled():
    with style():
        yield


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    plan = campaign(target={"model": "m", "variants": ["bf16"]}, stages=[STAGE], blocks=1)
    return read_result(write_run(tmp_path_factory.mktemp("figures") / "run", plan))


def with_ttft(result, *quantiles):
    """The result with these percentiles of TTFT, failure-aware."""
    rows = []
    for row in result.summaries:
        ttft = msgspec.structs.replace(row.latencies["ttft_user_ms"], with_failures=quantiles)
        latencies = row.latencies | {"ttft_user_ms": ttft}
        rows.append(msgspec.structs.replace(row, latencies=latencies))
    return replace(result, summaries=tuple(rows))


def panel(result):
    return draw_percentiles(result).figure.axes[0]


def bars(axes):
    """Both ends of each interval; they are the lines at one x that are drawn broad."""
    return [tuple(line.get_ydata()) for line in axes.lines if line.get_linewidth() == 3.5]


def signs(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("high", [None, math.inf])
def test_an_interval_without_an_upper_end_goes_to_the_top_with_an_arrow(result, high):
    axes = panel(
        with_ttft(
            result, Quantile(0.50, 58.0, 20, 50.0, 60.0), Quantile(0.99, 90.0, 120, 80.0, high)
        )
    )
    top = axes.get_ylim()[1]
    assert bars(axes) == [(50.0, 60.0), (80.0, top)] and top > 1.1 * 90
    assert signs(axes) == ["↑"]
    assert "arrow" in draw_percentiles(result).caption


def test_an_interval_without_a_lower_end_goes_to_the_bottom_with_an_arrow(result):
    axes = panel(with_ttft(result, Quantile(0.50, 58.0, 4, None, None)))
    assert bars(axes) == [axes.get_ylim()] and signs(axes) == ["↓", "↑"]


def test_closed_intervals_have_no_arrow(result):
    axes = panel(with_ttft(result, Quantile(0.50, 58.0, 20, 50.0, 60.0)))
    assert bars(axes) == [(50.0, 60.0)] and signs(axes) == []


def test_an_infinite_percentile_has_the_interval_that_is_known(result):
    axes = panel(with_ttft(result, Quantile(0.99, math.inf, 120, 80.0, math.inf)))
    assert bars(axes) == [(80.0, axes.get_ylim()[1])] and signs(axes) == ["↑", "∞"]
    axes = panel(with_ttft(result, Quantile(0.99, math.inf, 120, math.inf, math.inf)))
    assert bars(axes) == [] and "∞" in signs(axes) and "↓" not in signs(axes)


@pytest.mark.parametrize(("p99", "p"), [(math.inf, "P99"), (90.0, "P99"), (None, "P50")])
def test_an_infinite_tail_is_supported_and_a_missing_one_is_not(result, p99, p):
    found = with_ttft(result, Quantile(0.50, 58.0, 120), Quantile(0.99, p99, 120))
    axes = draw_load(found).figure.axes[0]
    assert axes.get_title(loc="left") == f"TTFT {p}, ms"
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert len(crosses) == (p99 == math.inf)
    assert [text.strip() for text in signs(axes)] == ["∞"] * len(crosses)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Nine variants: two more than there are colours."""
    names = [f"v{i}" for i in range(9)]
    plan = campaign(target={"model": "m", "variants": names}, stages=[STAGE], blocks=1)
    with pytest.MonkeyPatch.context() as patch:  # the fake engine's table of speeds
        for name in names:
            patch.setitem(run_folders.SPEED, name, 1.0)
        return read_run(write_run(tmp_path_factory.mktemp("figures") / "many", plan))


def looks(lines):
    return [(line.get_color(), line.get_linestyle()) for line in lines]


def test_the_legend_has_the_lines_that_are_drawn(many):
    figure = draw_ecdf(result_of(many), Samples(many)).figure
    drawn = looks(figure.axes[0].lines)
    assert looks(figure.legends[0].legend_handles) == drawn
    assert len(set(drawn)) == 9


def test_what_names_no_variant_is_grey_and_no_variant_is(many):
    samples = [
        MetricSample(t_ns=t, name="x", labels={"of": name}, value=1.0)
        for name in ("v6", "v7", "nobody")
        for t in (0, 10**9)
    ]
    axes = draw_scraped(result_of(many), samples, many.cells).figure.axes[0]
    found = dict(
        zip(
            ("nobody", "v6", "v7"),
            sorted(looks(axes.lines), key=lambda x: x[0] != MUTED),
            strict=True,
        )
    )
    assert found["nobody"] == (MUTED, "-") and MUTED not in COLOURS
    assert len(set(found.values())) == 3


def test_the_bracket_is_not_said_to_need_a_pass(tmp_path):
    rates = {"bf16": (8.0, 27.0)}
    picture = draw_knee(read_result(write_search(tmp_path / "run", rates)))
    assert "bracket goes by the mark" in picture.caption
    assert (
        picture.figure.axes[1].get_title(loc="left")
        == "highest rate that held to lowest that did not"
    )


@pytest.mark.parametrize(
    ("passed", "failed", "arrows"), [(8.0, 27.0, []), (27.0, None, ["→"]), (None, 8.0, ["←"])]
)
def test_a_bracket_with_one_end_is_open(tmp_path, passed, failed, arrows):
    result = read_result(write_search(tmp_path / "run", {"bf16": (8.0, 27.0)}))
    found = msgspec.structs.replace(
        result.saturation[0], highest_passed_per_s=passed, lowest_failed_per_s=failed
    )
    picture = draw_knee(replace(result, saturation=(found,)))
    assert signs(picture.figure.axes[1]) == arrows
