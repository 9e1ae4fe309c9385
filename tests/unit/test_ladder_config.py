"""The `ladder` of a Serve file: what it takes, and what it says of what it does not."""

import pytest

from serve_app.config.ladder import LadderConfig
from serve_app.config.parse import parse
from serve_app.domain.errors import ConfigError

SOUND = {"rungs": ["bf16", "int8", "gptq"], "ttft_p95_ms": 500}


def made(**changes):
    return parse(LadderConfig, SOUND | changes, where="ladder")


def test_milliseconds_become_seconds_and_what_is_not_set_stays_unknown():
    rules = made(tpot_p95_ms=40, max_in_flight={"bf16": 12}).to_rules()
    assert (rules.ttft_p95_s, rules.tpot_p95_s) == (0.5, 0.04)
    assert rules.rungs == ("bf16", "int8", "gptq")
    assert rules.max_in_flight == {"bf16": 12}
    assert made().to_rules().tpot_p95_s is None
    assert made().to_rules().max_in_flight is None


def test_limits_of_every_rung_above_the_last_are_an_slo_too():
    limits = {"bf16": 8, "int8": 12}
    assert made(ttft_p95_ms=None, max_in_flight=limits).to_rules().ttft_p95_s is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rungs": ["bf16"]}, "at least 2"),
        ({"rungs": ["bf16", "int8", "bf16"]}, "each variant on one rung"),
        ({"rungs": ["bf16", "In T8"]}, "rungs.1"),
        ({"ttft_p95_ms": None}, "need an SLO to hold"),
        ({"ttft_p95_ms": None, "max_in_flight": {"bf16": 8}}, "every rung above the last"),
        ({"ttft_p95_ms": 0}, "greater than 0"),
        ({"max_in_flight": {"gptq": 8}}, "rungs above the last"),
        ({"max_in_flight": {"fp8": 8}}, "bf16, int8"),
        ({"max_in_flight": {"bf16": 0}}, "greater than or equal to 1"),
        ({"clear_bp": 10_001}, "less than or equal to 10000"),
        ({"sessions": "jump"}, "'stay' or 'move'"),
        ({"treshold": 1}, "treshold is not a known key"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_change(changes, says):
    with pytest.raises(ConfigError, match="ladder: ") as caught:
        made(**changes)
    assert says in str(caught.value)
