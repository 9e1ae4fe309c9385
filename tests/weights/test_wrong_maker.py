"""A maker that mixes up two layers before the gate's reference is computed: seen by its weights.

Round to nearest in plain torch, on the reference model's own weights; the limits are the recipes'.
"""

import itertools
from dataclasses import replace
from typing import get_args

import pytest
import torch
from transformers import AutoTokenizer

from serve_app.quantize.catalogue import recipe
from serve_app.quantize.gate import judge, with_weights
from serve_app.quantize.layouts import plain
from serve_app.quantize.layouts.linear import QuantizedLinear
from serve_app.quantize.recipes import LayerKind
from serve_app.quantize.weight_error import Kind, weight_errors
from serve_app.quantize.weight_limit import weigh
from serve_app.reference.build import CHECKPOINT
from serve_app.reference.corpus import check_exchanges
from tests.fakes import forward_pass

SCHEMES = {
    "rtn": (4, 128, True), "gguf-q4-0": (4, 32, True), "awq": (4, 128, False),
    "int8-weight-only": (8, 128, True), "int8": (8, None, True), "rtn-w3": (3, 32, True),
    "rtn-w2": (2, 32, False),
}  # fmt: skip
"""Recipe whose limit holds: bits, group size (None: the channel), symmetric."""
PARTS = ("everything", "scales", "zero_points")


@pytest.fixture(scope="module")
def base():
    return plain.dequantize(CHECKPOINT)


def rounded(tensor, bits, group_size, symmetric):
    n, k = tensor.shape
    top = (1 << bits) - 1
    grouped = tensor.view(n, -1, group_size or k)
    if symmetric:
        scales = grouped.abs().amax(-1) * 2 / top
        zeros = torch.full_like(scales, 1 << (bits - 1))
    else:
        low, high = grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)
        scales = (high - low) / top
        zeros = (-low / scales).round()
    levels = (grouped / scales[..., None] + zeros[..., None]).round().clamp(0, top)
    given = None if symmetric else zeros.to(torch.uint8)
    return QuantizedLinear(bits, levels.to(torch.uint8).view(n, k), scales, given)


def exchanged(one, other, part):
    """Both layers, with that part each of the other's."""
    if part == "everything":
        return other, one
    return (
        replace(one, **{part: getattr(other, part)}),
        replace(other, **{part: getattr(one, part)}),
    )


def pairs(base):
    """Names of the same layer of two blocks."""
    names = [name for name in base if "_proj." in name]
    return [
        (a, b) for a, b in itertools.combinations(names, 2) if a.split(".")[3:] == b.split(".")[3:]
    ]


def weighed(name, base, made):
    """By the recipe's limit: the layers that were made, as the job measures them."""
    dense = {layer: linear.dequantize() for layer, linear in made.items()}
    errors = weight_errors({layer: base[layer] for layer in made}, dense)
    return weigh(recipe(name).gate, errors.as_json()["layers"])


@pytest.mark.parametrize("name", SCHEMES)
def test_two_layers_mixed_up_are_seen_and_none_that_is_right(name, base):
    made = {each: rounded(base[each], *SCHEMES[name]) for each in base if "_proj." in each}
    right = weighed(name, base, made)
    print(f"{name}: right {right.relative:.4f}, limit {recipe(name).gate.weights}")
    assert not right.failures
    assert len(pairs(base)) == 21
    for part in PARTS:
        if part == "zero_points" and SCHEMES[name][2]:
            continue
        least = 9.0
        for a, b in pairs(base):
            wrong = dict(zip((a, b), exchanged(made[a], made[b], part), strict=True))
            found = weighed(name, base, wrong)
            assert found.failures, (part, a, b, found)
            least = min(least, found.relative)
        print(f"  {part} exchanged: {least:.4f} at least")


def test_the_rest_of_the_gate_does_not_see_it(base):
    """Engine and reference agree, and the base is not far: but for the weights it would pass."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    rows = [
        tokenizer(f"{ask} {answer}", add_special_tokens=False)["input_ids"]
        for ask, answer in check_exchanges()[:40]
    ]
    layers = [f"model.layers.{i}.self_attn.k_proj.weight" for i in (0, 1)]
    made = {name: rounded(base[name], *SCHEMES["rtn"]) for name in layers}
    wrong = dict(zip(layers, exchanged(*made.values(), "scales"), strict=True))
    dense = base | {name: linear.dequantize() for name, linear in wrong.items()}
    model = forward_pass.llama(CHECKPOINT, dense)
    reference = forward_pass.reference(model, forward_pass.llama(CHECKPOINT, base), rows)
    result = judge(recipe("rtn").gate, reference, *forward_pass.as_engine(model, rows))
    print(result.describe())
    assert result.passed
    assert not with_weights(result, weighed("rtn", base, wrong)).passed


def test_the_schema_names_the_kinds_that_are_measured():
    assert get_args(LayerKind) == get_args(Kind)
