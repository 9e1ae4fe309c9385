"""What the first table shows: one percentile per metric, the highest that says something."""

import math

from loadtests.analyse.nouns import Change, Comparison
from loadtests.report.findings import decisive


def comparison(p, ratio, change=Change.INCONCLUSIVE, variant="b", **changes):
    plain = {
        "stage": "s", "metric": "ttft_user_ms", "baseline": "a", "n_blocks": 5, "low": None,
        "high": None, "p_value": None, "p_sign_flip": None, "p_adjusted": None, "reason": "",
    }  # fmt: skip
    return Comparison(p=p, ratio=ratio, change=change, variant=variant, **(plain | changes))


def test_the_highest_percentile_that_has_a_ratio_is_shown_for_all_variants():
    shown = decisive(
        [
            comparison(0.50, 0.9),
            comparison(0.95, 0.8),
            comparison(0.99, None),
            comparison(0.50, 0.9, variant="c"),
            comparison(0.95, None, variant="c"),
            comparison(0.99, None, variant="c"),
        ]
    )
    assert [(each.p, each.variant) for each in shown] == [(0.95, "b"), (0.95, "c")]


def test_failures_that_reach_the_tail_are_a_finding_without_a_ratio():
    infinite = comparison(0.95, None, Change.WORSE, values=(50.0, math.inf))
    assert decisive([comparison(0.50, 1.0), infinite]) == (infinite,)


def test_metrics_come_in_the_order_of_importance_and_unknown_ones_do_not():
    speed = comparison(None, 1.1, metric="output_tokens_per_s")
    other = comparison(None, 1.1, metric="new_thing")
    first = comparison(0.50, 1.1)
    assert decisive([speed, other, first]) == (first, speed)
    assert decisive([]) == ()
