"""The shape that a `config.json` tells: windows, experts, latent attention, what is missing."""

import json
from pathlib import Path

import pytest

from serve_app.domain.errors import CheckpointError
from serve_app.planning.shape import ModelShape, shape_from_config

CONFIGS = Path(__file__).parents[1] / "fixtures" / "model_configs"


def config(name: str) -> dict[str, object]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def shape(name: str) -> ModelShape:
    return shape_from_config(config(name))


def test_every_known_configuration_is_read():
    names = [path.stem for path in CONFIGS.glob("*.json")]
    assert len(names) >= 12
    for name in names:
        assert shape(name).n_layers > 0, name


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("qwen2.5-7b", {}, (0, 0)),  # names a window and does not use it
        ("qwen2.5-7b", {"use_sliding_window": True}, (0, 0)),  # from layer 28 of 28
        ("qwen2.5-7b", {"use_sliding_window": True, "max_window_layers": 20}, (131072, 8)),
        ("mistral-7b-v0.3", {}, (0, 0)),  # null
        ("mistral-7b-v0.3", {"sliding_window": 4096}, (4096, 32)),  # as v0.1 has it
        ("phi-3-mini-4k", {}, (2047, 32)),
        ("gemma-2-9b", {}, (4096, 21)),
        ("gemma-3-12b", {}, (1024, 40)),
    ],
)
def test_windows(name, changes, expected):
    found = shape_from_config({**config(name), **changes})
    assert (found.window, found.n_window_layers) == expected


def test_layer_types_go_before_the_pattern():
    kinds = ["full_attention", "sliding_attention"] * 21
    found = shape_from_config({**config("gemma-2-9b"), "layer_types": kinds[:-1]})
    assert found.n_window_layers == 20
    alike = shape_from_config({**config("gemma-2-9b"), "layer_types": ["full_attention"] * 42})
    assert (alike.window, alike.n_window_layers) == (0, 0)


def test_the_text_model_of_a_nested_configuration():
    gemma = shape("gemma-3-12b")
    assert (gemma.hidden_size, gemma.head_dim, gemma.vocab_size) == (3840, 256, 262208)
    assert gemma.tied_embeddings
    assert gemma.architecture == "Gemma3ForConditionalGeneration"


def test_experts():
    assert shape("mixtral-8x7b").n_expert_layers == 32
    deepseek = shape("deepseek-v2-lite")
    assert (deepseek.n_experts, deepseek.n_shared_experts, deepseek.n_expert_layers) == (64, 2, 26)
    qwen = {**config("qwen3-30b-a3b"), "decoder_sparse_step": 2, "mlp_only_layers": [1]}
    assert shape_from_config(qwen).n_expert_layers == 23  # 1, 3, 5, ... but 1
    shared = {**config("qwen3-30b-a3b"), "shared_expert_intermediate_size": 3072}
    assert shape_from_config(shared).n_shared_experts == 4
    with pytest.raises(CheckpointError, match="multiple"):
        shape_from_config({**shared, "shared_expert_intermediate_size": 1000})


def test_latent_attention():
    found = shape("deepseek-v2-lite")
    assert (found.latent_dim, found.rope_dim, found.nope_dim, found.value_dim) == (
        512,
        64,
        128,
        128,
    )
    assert found.query_rank == 0  # null: not compressed
    with pytest.raises(CheckpointError, match="'v_head_dim'"):
        shape_from_config({**config("deepseek-v2-lite"), "v_head_dim": None})


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size"],
)
def test_a_missing_key_is_named(key):
    values = config("llama-3.1-8b")
    del values[key]
    with pytest.raises(CheckpointError, match=f"{key!r}"):
        shape_from_config(values)


@pytest.mark.parametrize("value", ["4096", 4096.5, -1, True])
def test_a_key_of_another_kind_is_named(value):
    with pytest.raises(CheckpointError, match="hidden_size"):
        shape_from_config({**config("llama-3.1-8b"), "hidden_size": value})


@pytest.mark.parametrize(
    "odd",
    [
        {"is_encoder_decoder": True},
        {"mamba_d_state": 16},
        {"attention_chunk_size": 8192},
        {"layer_types": ["full_attention", "linear_attention"]},
    ],
)
def test_layers_without_a_formula_are_refused(odd):
    with pytest.raises(CheckpointError):
        shape_from_config({**config("llama-3.1-8b"), **odd})


def test_defaults_of_the_field():
    values = {**config("llama-3.1-8b")}
    for key in ("num_key_value_heads", "head_dim", "tie_word_embeddings"):
        values.pop(key, None)
    found = shape_from_config(values)
    assert (found.n_kv_heads, found.head_dim, found.tied_embeddings) == (32, 128, False)
    assert shape("gemma-2-9b").tied_embeddings  # left to transformers by its configuration
