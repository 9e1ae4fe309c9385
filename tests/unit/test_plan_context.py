import pytest

from loadtests.campaign import parse_campaign
from loadtests.plan.context import MESSAGE_TOKENS, check_lengths
from serve_app.domain.errors import ConfigError


def lengths(longest):
    return {"median": 4, "sigma": 1, "max": longest}


MIX = [
    {"name": "chat", "weight": 1, "input_tokens": lengths(100), "output_tokens": lengths(50)},
    {"name": "code", "weight": 1, "input_tokens": lengths(20), "output_tokens": lengths(140)},
]
POISSON = {"name": "p", "kind": "poisson", "rate_per_s": 1, "duration_s": 5}


def campaign(workload, stages=(POISSON,), **more):
    return parse_campaign(
        {
            "target": {"model": "m"},
            "workload": workload,
            "stages": list(stages),
        }
        | more,
        "test",
    )


def assert_needs(made, tokens):
    check_lengths(made, {"a": tokens, "b": None})
    with pytest.raises(ConfigError, match=f"need a context of {tokens} tokens") as caught:
        check_lengths(made, {"a": tokens - 1, "b": None, "c": 10**6})
    assert f"have a {tokens - 1}: " in str(caught.value)
    assert "max_model_len" in str(caught.value)


def test_the_class_with_the_longest_sum_counts():
    assert_needs(campaign({"prompts": {"kind": "synthetic", "mix": MIX}}), 160 + MESSAGE_TOKENS)


def test_a_prefix_and_a_conversation_add_up():
    workload = {
        "prompts": {"kind": "synthetic", "mix": MIX},
        "shared_prefix": {"share": 0.1, "tokens": 30},
        "sessions": {"turns": [1, 3], "think_s": [0, 1]},
    }
    assert_needs(campaign(workload), 30 + 3 * 160 + 5 * MESSAGE_TOKENS)


def test_prompts_of_unknown_length_count_as_nothing():
    workload = {"prompts": {"kind": "corpus"}, "max_tokens": [5, 60]}
    assert_needs(campaign(workload), 60 + MESSAGE_TOKENS)


def test_a_search_is_checked_as_its_workload():
    search = {"duration_s": 5, "low_per_s": 1, "high_per_s": 2}
    made = campaign(
        {"prompts": {"kind": "synthetic", "mix": MIX}}, (), search=search, slo={"ttft_ms": 1}
    )
    assert_needs(made, 160 + MESSAGE_TOKENS)


def test_a_trace_counts_as_it_is_played(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(
            f'{{"timestamp": {second * 1000}, "input_length": {n_input}, "output_length": 9}}\n'
            for second, n_input in enumerate((50, 400, 80, 60, 9000))
        )
    )
    stage = {"name": "t", "kind": "trace", "format": "mooncake", "path": str(path)}
    trace = {"prompts": {"kind": "trace"}}
    whole = campaign(trace, [stage | {"duration_s": 3}])
    assert_needs(whole, 400 + 9 + MESSAGE_TOKENS)
    cut = campaign(trace, [stage | {"duration_s": 3, "max_input_tokens": 70}])
    assert_needs(cut, 70 + 9 + MESSAGE_TOKENS)
    later = campaign(trace, [stage | {"duration_s": 1, "start_s": 2.0}])
    assert_needs(later, 80 + 9 + MESSAGE_TOKENS)
    both = campaign(
        {"prompts": {"kind": "synthetic", "mix": MIX}}, [POISSON, stage | {"duration_s": 1}]
    )
    assert_needs(both, 160 + MESSAGE_TOKENS)


def test_nothing_known_is_nothing_refused():
    check_lengths(campaign({"prompts": {"kind": "synthetic", "mix": MIX}}), {"a": None})
