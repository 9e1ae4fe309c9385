"""How numbers and their absence are written, at the edges."""

import math

import pytest

from loadtests.analyse.nouns import Change, Comparison, Saturation, Share, Verdict
from loadtests.analyse.stats import Quantile
from loadtests.report import rows
from loadtests.report.tables import comparison_table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.inf, "∞"),
        (0.0, "0"),
        (0.0123, "0.012"),
        (0.1, "0.10"),
        (9.994, "9.99"),
        (10.0, "10.0"),
        (99.94, "99.9"),
        (100.0, "100"),
        (12345.6, "12,346"),
    ],
)
def test_number(value, text):
    assert rows.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "-"), (0.0, "0%"), (1.0, "100%"), (0.9996, ">99.9%"), (0.985, "98.5%")],
)
def test_a_share_is_never_rounded_up_to_all(share, text):
    assert rows.percent(share) == text


def test_intervals_say_which_end_is_missing():
    assert rows.with_interval(Quantile(0.99, 58.3, 400, 55.1, None)) == "58.3 [55.1, …]"
    assert rows.with_interval(Quantile(0.99, None, 4)) == "-"
    assert rows.with_interval(Quantile(0.99, math.inf, 400, 90.0, math.inf)) == "∞"
    assert rows.share_with_interval(Share(k=97, n=100, low=0.915, high=0.994)) == (
        "97% [91.5%, 99.4%]"
    )
    assert rows.share_with_interval(Share(k=0, n=0, low=0.0, high=1.0)) == "-"


def comparison(**changes):
    plain = {
        "stage": "s", "metric": "ttft_user_ms", "p": 0.99, "variant": "b", "baseline": "a",
        "n_blocks": 5, "ratio": 0.931, "low": 0.9, "high": None, "p_value": 0.01,
        "p_sign_flip": 0.06, "p_adjusted": 0.02, "change": Change.BETTER, "reason": "",
    }  # fmt: skip
    return Comparison(**(plain | changes))


def test_ratios_and_the_names_of_metrics():
    assert rows.ratio(comparison()) == "0.93× [0.90, …]"
    assert rows.ratio(comparison(ratio=None)) == "-"
    assert rows.ratio(comparison(ratio=None, values=(50.0, math.inf))) == "∞"
    assert rows.metric_name(comparison()) == "TTFT P99"
    assert rows.metric_name(comparison(p=0.999)) == "TTFT P99.9"
    assert rows.metric_name(comparison(metric="tpot_ms", p=None)) == "TPOT mean"
    assert rows.metric_name(comparison(metric="output_tokens_per_s", p=None)) == "tok/s"
    assert rows.metric_name(comparison(metric="new_thing", p=None)) == "new_thing"
    assert rows.points_with_interval(0.004, -0.001, None) == "+0.4 [-0.1, …] pp"
    share = comparison(
        metric="error_rate", p=None, ratio=None, difference=0.04, low=0.03, high=0.05
    )
    assert (rows.ratio(share), rows.short_ratio(share)) == ("+4 [+3, +5] pp", "+4 pp")
    assert (rows.metric_name(share), share.effect) == ("failed", 0.04)
    assert rows.value_of("error_rate", 0.04) == "4%" and rows.value_of("tpot_ms", 4.0) == "4.00"


def test_the_table_of_comparisons_tells_points_from_ratios_and_where_p99_is_not():
    share = comparison(
        metric="attainment", p=None, ratio=None, difference=-0.04, low=-0.05, high=-0.03,
        values=(0.98, 0.94), change=Change.WORSE,
    )  # fmt: skip
    table = comparison_table([comparison(), share, comparison(stage="t", p=0.95)])
    shown = [cell.text for cell in table.rows[1]]
    assert shown[2:7] == ["in SLO", "98%", "94%", "-4 [-5, -3] pp", "▼ worse"]
    assert table.caption.endswith("; no P99 at t: it needs 100 requests in every cell")
    assert comparison_table([comparison()]).caption.endswith("paired by block")


@pytest.mark.parametrize(
    ("passed", "failed", "text"),
    [
        (4.0, 4.4, "holds at 4.00, not at 4.40 requests/s"),
        (None, 2.0, "does not hold at 2.00 requests/s, the lowest tried"),
        (32.0, None, "holds at 32.0 requests/s, the highest tried"),
        (None, None, "is not known to hold"),
    ],
)
def test_brackets(passed, failed, text):
    found = Saturation(
        variant="a", highest_passed_per_s=passed, lowest_failed_per_s=failed, probes=(),
        verdict=Verdict.PASS, reason="",
    )  # fmt: skip
    assert rows.bracket(found) == text
