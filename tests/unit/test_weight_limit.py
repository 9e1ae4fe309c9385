"""The limit on each layer's weight error, and where it is read from."""

import json
import math

import pytest
from pydantic import ValidationError

from serve_app.domain.errors import BuildError
from serve_app.quantize.catalogue import recipes
from serve_app.quantize.gate import with_weights
from serve_app.quantize.recipes import UNRELATED, Copy, Tolerance
from serve_app.quantize.weight_limit import recorded_layers, weigh
from tests.fakes.variants import PASS

LIMITS = {"engine": 0.01, "quantization": 0.05, "agreement": 0.9, "reason": "rounding"}


def tolerance(**changes):
    return Tolerance.model_validate(LIMITS | changes)


def layer(name, relative, kind="attention"):
    return {"name": name, "kind": kind, "relative": relative}


def test_the_limit_itself_passes_and_the_worst_layer_is_named():
    found = weigh(tolerance(weights=0.2), [layer("a", 0.1), layer("b", 0.2)])
    assert (found.layer, found.relative, found.failures) == ("b", 0.2, ())


def test_one_layer_above_it_fails_with_need_and_have():
    found = weigh(tolerance(weights=0.2), [layer("a", 0.1), layer("b", 0.201)])
    assert found.failures == (
        "weights of b differ from the base's by 0.2010 of their norm: need <= 0.2 (gate.weights)",
    )


def test_many_are_counted_the_worst_first():
    layers = [layer(f"l{i}", 0.3 + i / 10) for i in range(5)]
    found = weigh(tolerance(weights=0.2), layers)
    assert [each.split()[2] for each in found.failures[:3]] == ["l4", "l3", "l2"]
    assert found.failures[3:] == ("so do 2 more layers",)


def test_each_kind_may_have_its_own_limit_and_others_stay_as_they_are():
    limits = tolerance(weights={"attention": 0.05, "feed-forward": 0.3})
    mixed = [layer("a", 0.04), layer("b", 0.25, "feed-forward")]
    assert not weigh(limits, mixed).failures
    assert weigh(limits, [layer("a", 0.25)]).failures
    assert weigh(limits, [*mixed, layer("lm_head", 0.001, "head")]).failures == (
        "weights of lm_head differ from the base's by 0.0010 of their norm: need <= 0.0 "
        "(gate.weights)",
    )


@pytest.mark.parametrize("relative", [math.nan, math.inf, None])
def test_what_is_no_number_fails(relative):
    assert weigh(tolerance(weights=0.2), [layer("a", relative)]).failures


def test_without_a_limit_weights_that_have_nothing_to_do_with_the_base_fail():
    assert not weigh(tolerance(), [layer("a", 0.99)]).failures
    assert weigh(tolerance(), [layer("a", math.sqrt(2))]).failures
    assert tolerance().weights == UNRELATED


def test_no_layer_that_differs_is_no_number():
    found = weigh(tolerance(weights=0), [])
    assert (found.layer, found.relative, found.failures) == (None, None, ())


def test_a_pass_of_the_engine_is_none_with_wrong_weights():
    assert PASS.passed
    result = with_weights(PASS, weigh(tolerance(weights=0.2), [layer("a", 0.7)]))
    assert not result.passed
    assert (result.worst_layer, result.weight_error) == ("a", 0.7)
    assert "weights 0.7000 at most" in result.describe()


def test_every_shipped_recipe_has_a_limit_below_that_of_other_weights():
    for each in recipes().values():
        limits = each.gate.weights
        largest = max(limits.values()) if isinstance(limits, dict) else limits
        assert largest < UNRELATED, each.name
        assert (largest == 0) == (isinstance(each.make, Copy) or each.name == "kv-fp8"), each.name


@pytest.mark.parametrize("wrong", [-0.1, {"attention": -1}, {"attn": 0.1}, "0.2x"])
def test_a_wrong_limit_is_refused(wrong):
    with pytest.raises(ValidationError, match="weights"):
        tolerance(weights=wrong)


@pytest.mark.parametrize("content", [None, "{", "{}", '{"weight_error": 3}'])
def test_a_variant_without_its_record_is_not_judged(tmp_path, content):
    if content is not None:
        (tmp_path / "quantile.json").write_text(content)
    with pytest.raises(BuildError, match="need the record of the quantization job"):
        recorded_layers(tmp_path)


def test_the_record_has_the_layers(tmp_path):
    layers = [layer("a", 0.1)]
    record = {"weight_error": {"by_kind": {}, "layers": layers}}
    (tmp_path / "quantile.json").write_text(json.dumps(record))
    assert recorded_layers(tmp_path) == layers
