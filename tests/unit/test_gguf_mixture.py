"""Block types by tensor, rows of q and k, and the tokenizer that a GGUF holds."""

import json

import numpy as np
import pytest

from serve_app.domain.errors import CheckpointError
from serve_app.engines.gguf_order import heads_of, hugging_face_rows, llama_rows
from serve_app.quantize.gguf_mixture import tensor_type
from serve_app.quantize.gguf_names import gguf_name, hugging_face_name
from serve_app.quantize.gguf_vocabulary import CONTROL, NORMAL, UNUSED, pre_tokenizer, vocabulary
from serve_app.reference.build import CHECKPOINT
from serve_app.store.gguf_tokenizer import require_gguf_tokenizer
from tests.fakes.gguf_files import write_gguf


def kind(file_type, name, shape=(256, 256), n_layers=32, heads_per_kv_head=1, has_head=True):
    return tensor_type(
        file_type,
        name,
        shape,
        n_layers=n_layers,
        heads_per_kv_head=heads_per_kv_head,
        has_head=has_head,
    )


def test_q4_k_m_gives_more_to_the_first_and_last_eighth_and_every_third_layer():
    more = [
        layer
        for layer in range(32)
        if kind("Q4_K_M", f"blk.{layer}.ffn_down.weight") == "Q6_K"
        and kind("Q4_K_M", f"blk.{layer}.attn_v.weight") == "Q6_K"
    ]
    # As in llama.cpp's own files of 32 layers.
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert kind("Q4_K_M", "blk.0.attn_q.weight") == "Q4_K"


@pytest.mark.parametrize(
    ("file_type", "name", "given", "need"),
    [
        ("Q4_K_M", "output.weight", {}, "Q6_K"),
        ("Q4_K_M", "token_embd.weight", {}, "Q4_K"),
        ("Q4_K_M", "token_embd.weight", {"has_head": False}, "Q6_K"),
        ("Q8_0", "output.weight", {}, "Q8_0"),
        ("F16", "output.weight", {}, "F16"),
        ("Q4_0", "output_norm.weight", {"shape": (256,)}, "F32"),
        ("Q2_K", "blk.0.attn_v.weight", {}, "Q3_K"),
        ("Q2_K", "blk.0.attn_v.weight", {"heads_per_kv_head": 4}, "Q4_K"),
        ("Q3_K_M", "blk.1.attn_v.weight", {}, "Q5_K"),
        ("Q3_K_M", "blk.2.attn_v.weight", {}, "Q4_K"),
        ("Q3_K_M", "blk.2.attn_v.weight", {"n_layers": 80, "heads_per_kv_head": 8}, "Q5_K"),
        ("Q4_K_M", "blk.9.attn_q.weight", {"shape": (320, 320)}, "Q5_0"),
        ("Q3_K_M", "blk.9.attn_q.weight", {"shape": (320, 320)}, "Q4_0"),
        ("Q4_K_M", "blk.9.attn_q.weight", {"shape": (320, 300)}, "F16"),
    ],
)
def test_types_are_those_of_llama_cpp(file_type, name, given, need):
    assert kind(file_type, name, **given) == need


def test_the_order_of_rows_interleaves_the_halves_of_each_head_and_has_a_way_back():
    assert llama_rows(8, 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert llama_rows(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    rows = np.arange(256)
    assert (rows[llama_rows(256, 4)][hugging_face_rows(256, 4)] == rows).all()
    with pytest.raises(ValueError, match="6 rows"):
        llama_rows(6, 2)
    assert heads_of("blk.3.attn_q.weight", 8, 2) == 8
    assert heads_of("blk.3.attn_k.weight", 8, 2) == 2
    assert heads_of("blk.3.attn_v.weight", 8, 2) is None


def test_names_have_a_way_back_and_strangers_have_none():
    for name in ("model.embed_tokens.weight", "model.layers.11.mlp.down_proj.weight"):
        assert hugging_face_name(gguf_name(name)) == name
    assert gguf_name("model.layers.0.self_attn.q_proj.bias") is None
    assert hugging_face_name("rope_freqs.weight") is None


@pytest.fixture
def tokenizer():
    return json.loads((CHECKPOINT / "tokenizer.json").read_text())


def test_the_vocabulary_fills_every_row_of_the_embedding(tokenizer):
    words = vocabulary(tokenizer, 1030, "t")
    assert len(words.tokens) == len(words.types) == 1030
    assert words.tokens[0] == "</s>" and words.types[0] == CONTROL
    assert words.types[100] == NORMAL and words.types[1029] == UNUSED
    assert words.pre == "smollm"
    with pytest.raises(CheckpointError, match="the embedding has 1000 rows"):
        vocabulary(tokenizer, 1000, "t")


def test_tokenizers_that_would_be_cut_differently_are_refused_with_the_way_out(tokenizer):
    with pytest.raises(CheckpointError, match="convert_hf_to_gguf"):
        pre_tokenizer(tokenizer | {"pre_tokenizer": {"type": "Whitespace"}}, "t")
    with pytest.raises(CheckpointError, match="normalizes text"):
        pre_tokenizer(tokenizer | {"normalizer": {"type": "Lowercase"}}, "t")
    with pytest.raises(CheckpointError, match="byte-level BPE only"):
        vocabulary(tokenizer | {"model": {"type": "Unigram"}}, 1024, "t")


def test_a_gguf_without_a_tokenizer_is_refused(tmp_path):
    file = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"has no tokenizer.*tokenizer\.json"):
        require_gguf_tokenizer(file.parent)
    plain = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"]}
    write_gguf(file, plain=plain)
    require_gguf_tokenizer(file)
    with pytest.raises(CheckpointError, match="holds no"):
        require_gguf_tokenizer(tmp_path / "elsewhere")
