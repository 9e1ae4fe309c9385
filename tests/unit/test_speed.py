"""Tokens/s and their ratios: arithmetic on samples whose truth is known."""

import json
import random

import pytest

from serve_app.domain.errors import ConfigError, InvalidRunError
from serve_app.domain.units import MIB
from serve_app.reference.speed import (
    Result,
    Sample,
    block_order,
    engine_bytes,
    groups,
    result_from_json,
    result_to_json,
    speeds,
    spread,
)


def sample(variant: str, block: int, wall_s: float, batch: int = 1) -> Sample:
    return Sample(variant, block, batch, tokens=64 * batch, wall_s=wall_s, cpu_s=wall_s)


def by_name(samples):
    return {(each.variant, each.batch): each for each in speeds(samples, "bf16")}


def test_a_ratio_is_taken_inside_its_block():
    # The machine is ten times slower in block 1, for both: twice as fast stays twice as fast.
    samples = [
        sample("bf16", 0, 2.0), sample("w4", 0, 1.0),
        sample("bf16", 1, 20.0), sample("w4", 1, 10.0),
        sample("bf16", 2, 2.0), sample("w4", 2, 1.0),
    ]  # fmt: skip
    w4 = by_name(samples)["w4", 1]
    assert (w4.ratio.median, w4.ratio.low, w4.ratio.high, w4.ratio.n) == (2.0, 2.0, 2.0, 3)
    assert (w4.tokens_per_s.median, w4.tokens_per_s.low) == (64.0, 6.4)


def test_the_median_of_ratios_is_not_the_ratio_of_medians():
    walls = {"bf16": (1.0, 4.0, 6.0), "w4": (1.0, 1.0, 3.0)}
    samples = [sample(name, i, wall) for name, each in walls.items() for i, wall in enumerate(each)]
    assert by_name(samples)["w4", 1].ratio.median == 2.0  # of 1, 4, 2; the medians' would be 4


def test_batches_are_apart_and_the_baseline_is_one():
    samples = [
        sample("bf16", 0, 1.0), sample("bf16", 0, 2.0, batch=8),
        sample("w4", 0, 0.5), sample("w4", 0, 4.0, batch=8),
    ]  # fmt: skip
    found = by_name(samples)
    assert found["w4", 1].ratio.median == 2.0
    assert found["w4", 8].ratio.median == 0.5
    assert found["bf16", 8].ratio.median == 1.0
    assert found["bf16", 8].tokens_per_s.median == 256.0


def test_without_the_baseline_in_its_block_there_is_no_ratio():
    samples = [sample("bf16", 0, 1.0), sample("w4", 1, 1.0)]
    w4 = by_name(samples)["w4", 1]
    assert w4.ratio is None
    assert w4.tokens_per_s.n == 1


def test_cpu_time_tells_kernels_apart_where_others_hold_the_core():
    # Half of the variant's wall time went to somebody else.
    samples = [
        Sample("bf16", 0, 1, tokens=64, wall_s=2.0, cpu_s=2.0),
        Sample("w4", 0, 1, tokens=64, wall_s=2.0, cpu_s=1.0),
        Sample("old", 0, 1, tokens=64, wall_s=2.0),
    ]
    found = by_name(samples)
    assert (found["w4", 1].ratio.median, found["w4", 1].cpu_ratio.median) == (1.0, 2.0)
    assert found["old", 1].ratio.median == 1.0
    assert found["old", 1].cpu_ratio is None


@pytest.mark.parametrize("wall_s", [0.0, -1.0, float("nan")])
def test_impossible_samples_are_refused(wall_s):
    with pytest.raises(InvalidRunError, match="need both above 0"):
        speeds([sample("bf16", 0, wall_s)], "bf16")


def test_a_cell_measured_twice_in_a_block_is_refused():
    with pytest.raises(InvalidRunError, match="twice"):
        speeds([sample("bf16", 0, 1.0), sample("bf16", 0, 1.1)], "bf16")


def test_no_samples_are_not_zero():
    assert speeds([], "bf16") == []
    with pytest.raises(InvalidRunError, match="no samples"):
        spread([])


def test_engines_that_fit_together_are_one_group():
    need = {"bf16": 4, "w4": 2, "int8": 3}
    assert groups(need, "bf16", 9) == [("bf16", "w4", "int8")]


def test_every_group_has_the_baseline_and_every_variant_is_in_one():
    rng = random.Random(1)
    for _ in range(200):
        need = {"bf16": 5} | {f"v{i}": rng.randint(1, 10) for i in range(rng.randint(1, 12))}
        found = groups(need, "bf16", 15)
        assert all(group[0] == "bf16" for group in found)
        assert all(sum(need[name] for name in group) <= 15 for group in found)
        assert sorted(n for g in found for n in g[1:]) == sorted(set(need) - {"bf16"})


def test_what_does_not_fit_with_the_baseline_is_refused():
    need = {"bf16": engine_bytes(365 * MIB), "w4": engine_bytes(94 * MIB)}
    with pytest.raises(ConfigError, match=r"w4 and bf16 together need 2\.\d+ GiB"):
        groups(need, "bf16", 1024 * MIB)
    with pytest.raises(ConfigError, match="baseline 'fp16' is not among bf16, w4"):
        groups(need, "fp16", 1 << 40)


def test_orders_are_permutations_and_differ():
    rng = random.Random(240)
    orders = [tuple(block_order(["a", "b", "c"], rng)) for _ in range(60)]
    assert len(set(orders)) == 6
    assert {tuple(sorted(order)) for order in orders} == {("a", "b", "c")}


def result() -> Result:
    return Result(
        baseline="bf16",
        label="random weights",
        threads=1,
        tokens=64,
        prompt_tokens=16,
        samples=(sample("bf16", 0, 1.0), sample("w4", 0, 0.5)),
        facts={"bf16": {"engine": "fake"}},
        failed={"int8": "it did not start"},
        machine={"cpu": "a", "cores": "2"},
    )


def test_a_result_survives_json_with_what_follows_from_it():
    text = json.dumps(result_to_json(result()))
    assert result_from_json(json.loads(text)) == result()
    ratios = [each["ratio"]["median"] for each in json.loads(text)["speeds"]]
    assert ratios == [1.0, 2.0]


def test_another_schema_is_refused():
    with pytest.raises(InvalidRunError, match="measure anew"):
        result_from_json(result_to_json(result()) | {"schema_version": 0})
