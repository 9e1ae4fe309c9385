"""`user_config.resilience`: defaults, faults, and the order of the timeouts."""

import pytest

from serve_app.config.parse import parse
from serve_app.config.resilience import BreakerConfig, ResilienceConfig, RetryConfig, check_drain
from serve_app.domain.errors import ConfigError
from serve_app.routing.breaker import BreakerRules
from serve_app.routing.retry_budget import BudgetRules


def test_the_defaults_are_those_of_the_rules():
    assert RetryConfig().to_rules() == BudgetRules()
    assert BreakerConfig().to_rules() == BreakerRules()
    check_drain(ResilienceConfig(), 30)


def test_nothing_but_names_is_needed_to_turn_parts_off():
    config = parse(
        ResilienceConfig,
        {"breaker": None, "idle_timeout_ms": None, "drain_s": None}
        | {"retry": {"same_variant": 0, "budget_share": 0, "budget_min_per_s": 0}},
        where="x",
    )
    assert config.breaker is None and config.retry.to_rules().share == 0
    check_drain(config, 0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"breakers": {}}, "breakers is not a known key; known here: .*breaker.*retry"),
        ({"breaker": {"open": 1}}, "breaker.open is not a known key"),
        ({"breaker": {"open_s": 9, "max_open_s": 3}}, "max_open_s 3 is below open_s 9"),
        ({"breaker": {"jitter": 1.0}}, "breaker.jitter"),
        ({"breaker": {"failure_share": 0}}, "breaker.failure_share"),
        ({"breaker": {"failures_in_a_row": 0}}, "breaker.failures_in_a_row"),
        ({"retry": {"budget_share": 1.1}}, "retry.budget_share"),
        ({"retry": {"window_s": float("inf")}}, "retry.window_s"),
        ({"request_timeout_ms": 0}, "request_timeout_ms"),
        ({"request_timeout_ms": 100, "first_byte_timeout_ms": 100}, "no time is left for another"),
        ({"drain_s": 0}, "drain_s"),
    ],
)
def test_faults_are_named(values, said):
    with pytest.raises(ConfigError, match=said):
        parse(ResilienceConfig, values, where="user_config.resilience")


@pytest.mark.parametrize(("drain_s", "stop_s"), [(28.1, 20), (60, 66.9)])
def test_a_drain_that_serve_cuts_short_is_refused_with_what_would_do(drain_s, stop_s):
    with pytest.raises(ConfigError, match=r"graceful_shutdown_timeout_s to") as caught:
        check_drain(ResilienceConfig(drain_s=drain_s), stop_s)
    assert f"{drain_s + 7:g}" in str(caught.value)
    check_drain(ResilienceConfig(drain_s=drain_s), drain_s + 7)
