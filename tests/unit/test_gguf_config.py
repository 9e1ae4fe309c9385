"""From GGUF metadata to what `config.json` would say, to the facts that the planner takes."""

import pytest

from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import QuantMethod
from serve_app.planning.shape import shape_from_config
from serve_app.store.facts import checkpoint_facts
from serve_app.store.inspect import inspect_checkpoint, read_checkpoint
from serve_app.store.source import LocalSource, open_source
from tests.fakes.gguf_files import KEYS, Q4_K_M, n_bytes, write_gguf


def shape_of(path):
    return shape_from_config(read_checkpoint(LocalSource(path.parent)).config)


def test_a_llama(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    facts = checkpoint_facts(str(tmp_path))
    shape = facts.shape
    assert (shape.n_layers, shape.hidden_size, shape.intermediate_size) == (2, 256, 512)
    assert (shape.n_heads, shape.n_kv_heads, shape.head_dim) == (4, 2, 64)
    assert (shape.vocab_size, shape.context_length) == (320, 4096)
    assert not shape.tied_embeddings
    assert facts.scheme.describe() == "gguf W4A16"
    assert facts.scheme.container == "gguf"
    weights = facts.weights
    assert weights.embedding_bytes == weights.head_bytes == n_bytes("Q6_K", (320, 256))
    assert weights.linear_bytes == sum(
        n_bytes(*Q4_K_M[f"blk.0.{name}.weight"]) for name in ("attn_q", "attn_v", "ffn_up")
    )


def test_without_a_head_the_embedding_is_the_head(tmp_path):
    tensors = {name: info for name, info in Q4_K_M.items() if name != "output.weight"}
    assert shape_of(write_gguf(tmp_path / "m.gguf", tensors)).tied_embeddings


def test_head_size_and_window_of_a_gemma(tmp_path):
    keys = {**KEYS, "attention.key_length": 128, "attention.sliding_window": 1024}
    shape = shape_of(write_gguf(tmp_path / "m.gguf", architecture="gemma2", keys=keys))
    assert (shape.head_dim, shape.window, shape.n_window_layers) == (128, 1024, 1)


@pytest.mark.parametrize(("pattern", "windowed"), [([True, True], 2), ([False, True], 1), (2, 1)])
def test_layers_with_a_window_as_the_file_tells_them(tmp_path, pattern, windowed):
    window = {"attention.sliding_window": 64, "attention.sliding_window_pattern": pattern}
    path = write_gguf(tmp_path / "m.gguf", architecture="gemma3", keys={**KEYS, **window})
    assert shape_of(path).n_window_layers == windowed


def test_a_mixture_of_experts(tmp_path):
    keys = {**KEYS, "expert_count": 8, "expert_used_count": 2}
    shape = shape_of(write_gguf(tmp_path / "m.gguf", keys=keys))
    assert (shape.n_experts, shape.n_experts_per_token, shape.expert_size) == (8, 2, 512)


@pytest.mark.parametrize("form", ["older", "newer"])
def test_latent_attention(tmp_path, form):
    heads = {"attention.key_length": 192, "attention.value_length": 128}
    if form == "newer":  # cached sizes, and those of the heads apart
        heads = {
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.head_count_kv": 1,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
        }
    keys = {
        **KEYS,
        "attention.kv_lora_rank": 512,
        "rope.dimension_count": 64,
        "leading_dense_block_count": 1,
        "expert_count": 64,
        "expert_used_count": 6,
        "expert_feed_forward_length": 1408,
        "expert_shared_count": 2,
        **heads,
    }
    shape = shape_of(write_gguf(tmp_path / "m.gguf", architecture="deepseek2", keys=keys))
    assert (shape.latent_dim, shape.rope_dim, shape.nope_dim, shape.value_dim) == (
        512,
        64,
        128,
        128,
    )
    assert (shape.n_experts, shape.n_shared_experts, shape.n_dense_layers) == (64, 2, 1)
    assert (shape.head_dim, shape.n_kv_heads) == (192, 4)


def test_layers_that_are_alike_may_be_told_one_by_one(tmp_path):
    keys = {**KEYS, "attention.head_count_kv": [2, 2], "feed_forward_length": [512, 512]}
    assert shape_of(write_gguf(tmp_path / "m.gguf", keys=keys)).n_kv_heads == 2


def test_layers_of_different_sizes_are_refused(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", keys={**KEYS, "attention.head_count_kv": [2, 4]})
    with pytest.raises(CheckpointError, match="layers of different sizes") as caught:
        shape_of(path)
    assert str(path) in str(caught.value)


def test_layers_that_predict_further_tokens_are_not_counted(tmp_path):
    keys = {**KEYS, "block_count": 4, "nextn_predict_layers": 1}
    assert shape_of(write_gguf(tmp_path / "m.gguf", keys=keys)).n_layers == 3


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", architecture="mamba")
    with pytest.raises(CheckpointError, match=r"architecture 'mamba'.*llama, mistral3"):
        shape_of(path)


def test_a_missing_fact_is_named_with_the_place(tmp_path):
    keys = {key: value for key, value in KEYS.items() if key != "embedding_length"}
    write_gguf(tmp_path / "m.gguf", keys=keys)
    with pytest.raises(CheckpointError, match="lacks 'hidden_size'") as caught:
        checkpoint_facts(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


class TestWhichFile:
    """A folder may hold several GGUF files."""

    def test_the_one_that_is_named(self, tmp_path):
        write_gguf(tmp_path / "m-Q4.gguf")
        write_gguf(tmp_path / "m-Q8.gguf", {"blk.0.ffn_up.weight": ("Q8_0", (512, 256))}, keys=KEYS)
        with pytest.raises(CheckpointError, match="2 GGUF files: name the one to serve") as caught:
            inspect_checkpoint(tmp_path)
        assert str(tmp_path / "m-Q4.gguf") in str(caught.value)
        for name, bits in (("m-Q4.gguf", 4), ("m-Q8.gguf", 8)):
            source = open_source(f"{tmp_path}/{name}")
            if bits == 8:  # no embedding and no vocabulary in this one
                with pytest.raises(CheckpointError, match="neither token_embd"):
                    inspect_checkpoint(source)
                continue
            checkpoint = inspect_checkpoint(source)
            assert checkpoint.scheme.bits == bits
            assert checkpoint.uri == f"{tmp_path}/{name}"
            checkpoint.require_method(QuantMethod.GGUF)

    def test_all_parts_of_one_that_is_split(self, tmp_path):
        names = sorted(Q4_K_M)
        parts = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
        for number, part in enumerate(parts):
            tensors = {name: Q4_K_M[name] for name in names[number::3]}
            write_gguf(tmp_path / part, tensors, keys=KEYS if number == 0 else {})
        write_gguf(tmp_path / "other.gguf")
        checkpoint = inspect_checkpoint(open_source(f"{tmp_path}/{parts[0]}"))
        assert checkpoint.weight_bytes == sum(n_bytes(*info) for info in Q4_K_M.values())
        (tmp_path / parts[1]).unlink()
        with pytest.raises(CheckpointError, match="2 of the 00003 parts of m: copy it whole"):
            inspect_checkpoint(open_source(f"{tmp_path}/{parts[0]}"))

    def test_weights_in_safetensors_are_preferred(self, tmp_path):
        from tests.fakes.checkpoints import PLAIN, write_checkpoint

        write_gguf(tmp_path / "m.gguf")
        write_checkpoint(tmp_path, PLAIN)
        assert inspect_checkpoint(tmp_path).scheme.method is QuantMethod.UNQUANTIZED
