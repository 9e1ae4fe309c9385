"""Weight error per layer: the rounding, whatever factors were moved between layers before."""

import json

import pytest
import torch

from serve_app.domain.errors import BuildError
from serve_app.quantize.weight_error import kind_of, weight_errors

BLOCK = "model.layers.0"


@pytest.fixture
def base():
    generator = torch.Generator().manual_seed(0)

    def matrix(n, k):
        return torch.randn(n, k, generator=generator)

    return {
        "model.embed_tokens.weight": matrix(16, 32),
        f"{BLOCK}.input_layernorm.weight": torch.rand(32, generator=generator) + 0.5,
        f"{BLOCK}.self_attn.q_proj.weight": matrix(32, 32),
        f"{BLOCK}.self_attn.v_proj.weight": matrix(16, 32),
        f"{BLOCK}.self_attn.o_proj.weight": matrix(32, 32),
        f"{BLOCK}.post_attention_layernorm.weight": torch.rand(32, generator=generator) + 0.5,
        f"{BLOCK}.mlp.gate_proj.weight": matrix(64, 32),
        f"{BLOCK}.mlp.up_proj.weight": matrix(64, 32),
        f"{BLOCK}.mlp.down_proj.weight": matrix(32, 64),
        "lm_head.weight": matrix(16, 32),
    }


def rounded(weights, step=0.3):
    """Every matrix of the block on a grid, as round-to-nearest puts it."""
    return {
        name: (tensor / step).round() * step if "proj" in name else tensor
        for name, tensor in weights.items()
    }


def smoothed(weights, spread=0.5):
    """Factors moved from norms into what they feed, and from up into down, as AWQ does."""
    generator = torch.Generator().manual_seed(1)
    moved = dict(weights)

    def factors(size):
        return (torch.randn(size, generator=generator) * spread).exp()

    for norm, fed in [
        ("input_layernorm", ("self_attn.q_proj", "self_attn.v_proj")),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ]:
        factor = factors(32)
        moved[f"{BLOCK}.{norm}.weight"] = moved[f"{BLOCK}.{norm}.weight"] / factor
        for name in fed:
            moved[f"{BLOCK}.{name}.weight"] = moved[f"{BLOCK}.{name}.weight"] * factor
    factor = factors(64)
    up, down = f"{BLOCK}.mlp.up_proj.weight", f"{BLOCK}.mlp.down_proj.weight"
    moved[up], moved[down] = moved[up] / factor[:, None], moved[down] * factor
    return moved


def by_layer(errors):
    return {each.layer: each for each in errors.layers}


def test_error_is_the_frobenius_norm_of_the_difference(base):
    after = rounded(base)
    name = f"{BLOCK}.mlp.down_proj"
    found = by_layer(weight_errors(base, after))[name]
    before = base[f"{name}.weight"]
    difference = before - after[f"{name}.weight"]
    assert found.relative == pytest.approx(float(difference.norm() / before.norm()), rel=1e-6)
    assert found.max_abs == float(difference.abs().max()) <= 0.15 + 1e-6
    assert (found.n_weights, found.rescaled) == (32 * 64, False)


def test_a_copy_has_no_error(base):
    errors = weight_errors(base, base)
    assert {each.relative for each in errors.layers} == {0.0}
    assert not any(each.rescaled for each in errors.layers)
    assert errors.as_json()["layers"] == []


def test_moved_factors_are_no_error(base):
    errors = by_layer(weight_errors(base, smoothed(base)))
    assert max(each.relative for each in errors.values()) < 1e-5
    rescaled = {name for name, each in errors.items() if each.rescaled}
    assert rescaled == {
        f"{BLOCK}.{name}"
        for name in (
            "self_attn.q_proj",
            "self_attn.v_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    }


def test_rounding_after_smoothing_is_all_that_is_left(base):
    """The same grid on smoothed weights costs about as much as on the weights themselves."""
    plain = by_layer(weight_errors(base, rounded(base)))
    after = by_layer(weight_errors(base, rounded(smoothed(base, spread=0.2))))
    for name, each in plain.items():
        if each.error:
            assert after[name].relative == pytest.approx(each.relative, rel=0.2), name


def test_rounding_alone_is_not_taken_for_moved_factors(base):
    """Even where it is as coarse as 2 bits, and hides a factor in each channel."""
    coarse = rounded(base, step=1.5)
    assert not any(each.rescaled for each in weight_errors(base, coarse).layers)


def test_a_wrong_scale_is_an_error_not_a_move(base):
    wrong = dict(base)
    wrong[f"{BLOCK}.mlp.up_proj.weight"] = base[f"{BLOCK}.mlp.up_proj.weight"] * 2
    found = by_layer(weight_errors(base, wrong))
    assert found[f"{BLOCK}.mlp.up_proj"].relative == pytest.approx(1)
    assert found[f"{BLOCK}.mlp.down_proj"].relative == 0


def test_kinds_are_summed_as_one_matrix(base):
    errors = weight_errors(base, rounded(base))
    kinds = {each.kind: each for each in errors.by_kind}
    assert kinds.keys() == {"embedding", "attention", "feed-forward", "head"}
    mlp = [each for each in errors.layers if each.kind == "feed-forward"]
    squares = sum(each.error**2 for each in mlp) / sum(each.norm**2 for each in mlp)
    assert kinds["feed-forward"].relative == pytest.approx(squares**0.5)
    assert kinds["feed-forward"].n_weights == 3 * 64 * 32
    worst = max(mlp, key=lambda each: each.relative)
    assert (kinds["feed-forward"].worst, kinds["feed-forward"].worst_relative) == (
        worst.layer,
        worst.relative,
    )
    assert kinds["head"].relative == 0


def test_json_survives_writing(base):
    content = weight_errors(base, rounded(base)).as_json()
    assert json.loads(json.dumps(content)) == content
    assert {each["name"] for each in content["layers"]} == {
        name.removesuffix(".weight") for name in base if "proj" in name
    }


def test_zeros_have_no_relative_error(base):
    base["lm_head.weight"] = torch.zeros(16, 32)
    errors = weight_errors(base, base)
    assert by_layer(errors)["lm_head"].relative is None
    assert {each.kind: each for each in errors.by_kind}["head"].relative is None


def test_missing_and_misshapen_matrices_are_refused(base):
    name = f"{BLOCK}.mlp.up_proj.weight"
    with pytest.raises(BuildError, match=r"up_proj.weight is \(64, 32\) in the base, none in"):
        weight_errors(base, {key: value for key, value in base.items() if key != name})
    with pytest.raises(BuildError, match=r"\(64, 32\) in the base, \(32, 64\) in"):
        weight_errors(base, {**base, name: base[name].T})


def test_a_tied_head_counts_as_the_embedding(base):
    tied = {key: value for key, value in base.items() if key != "lm_head.weight"}
    assert "lm_head" not in by_layer(weight_errors(base, tied))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.self_attn.o_proj", "attention"),
        ("model.layers.3.mlp.experts.7.up_proj", "feed-forward"),
        ("model.layers.3.block_sparse_moe.gate", "feed-forward"),
        ("model.embed_tokens", "embedding"),
        ("lm_head", "head"),
        ("model.vision.projector", "other"),
    ],
)
def test_kinds_by_name(name, kind):
    assert kind_of(name) == kind
