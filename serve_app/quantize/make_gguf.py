"""GGUF files of Llama checkpoints, in the types that llama.cpp runs.

The blocks are made by llama.cpp's own code (`ggml_quantize_chunk`), the mixture follows its rules,
and llama.cpp's tokenizer is held against the checkpoint's before the file counts as made.
"""

import ctypes as c
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from numpy.typing import NDArray
from tokenizers import Tokenizer

from serve_app.domain.errors import BuildError, CheckpointError
from serve_app.engines.gguf_order import heads_of, llama_rows
from serve_app.engines.llamacpp_lib import library
from serve_app.engines.llamacpp_model import LlamaModel
from serve_app.quantize.gguf_mixture import FILE_TYPES, tensor_type
from serve_app.quantize.gguf_names import gguf_name
from serve_app.quantize.gguf_vocabulary import CONVERTER, read_vocabulary
from serve_app.quantize.layouts.shards import open_tensors, read_config
from serve_app.quantize.recipes import Gguf, Recipe
from serve_app.reference.corpus import check_exchanges

_PLAIN = {"F32": np.float32, "F16": np.float16}
_QUANTIZATION_VERSION = 2
_ODD_TEXTS = (
    "12 345.67 + 0.5 = ?", "naïve café — “quoted”\n\n\tint main() { return 0; }",
    "  two spaces, don't, I'll  ", "日本語 и кириллица 🙂", "<|user|>a</s>",
)  # fmt: skip
"""Beside the reference model's check texts: what tokenizers cut differently."""


def make(recipe: Recipe, base: Path, out: Path, calibration_rows: list[list[int]]) -> None:
    """Write the recipe's GGUF into `out`. It needs no calibration."""
    assert isinstance(recipe.make, Gguf)
    write_gguf(base, out / f"model-{recipe.make.type}.gguf", recipe.make.type)


def write_gguf(base: Path, out_file: Path, gguf_type: str, *, permuted: bool = True) -> None:
    """Write the checkpoint in `base` as one GGUF file of the type (`Q4_K_M`).

    `permuted=False` leaves q and k in Hugging Face's order, which is wrong: for tests of the
    correctness gate. Raises CheckpointError for a checkpoint that is not plain Llama, BuildError
    when llama.cpp reads other tokens from the file than the checkpoint's tokenizer.
    """
    if gguf_type not in FILE_TYPES:
        raise BuildError(f"GGUF type {gguf_type!r}: need one of {', '.join(FILE_TYPES)}")
    config = read_config(base)
    _require_plain_llama(config, base)
    unfinished = out_file.with_name(f".{out_file.name}.part")
    writer = GGUFWriter(unfinished, "llama", use_temp_file=True)
    _add_metadata(writer, config, base, gguf_type)
    for name, shape, dtype, data in _tensors(base, config, gguf_type, permuted):
        writer.add_tensor(name, data, raw_shape=shape, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _require_same_tokens(base, unfinished)
    unfinished.rename(out_file)


def quantize_blocks(values: NDArray[np.float32], dtype: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Rows of `values` as ggml's blocks, by llama.cpp itself: bytes `[rows, bytes per row]`."""
    lib = library()
    values = np.ascontiguousarray(values, dtype=np.float32)
    n_rows, n_columns = values.shape
    blocks = np.empty((n_rows, lib.ggml_row_size(dtype, n_columns)), dtype=np.uint8)
    lib.ggml_quantize_init(dtype)
    written = lib.ggml_quantize_chunk(
        dtype, values.ctypes.data, blocks.ctypes.data, 0, n_rows, n_columns, c.c_void_p(None)
    )
    if written != blocks.nbytes:
        raise BuildError(f"llama.cpp wrote {written} of {blocks.nbytes} bytes as {dtype.name}")
    return blocks


def _tensors(
    base: Path, config: Mapping[str, Any], gguf_type: str, permuted: bool
) -> Iterator[tuple[str, tuple[int, ...] | None, GGMLQuantizationType, NDArray[Any]]]:
    n_heads = int(config["num_attention_heads"])
    n_kv_heads = int(config.get("num_key_value_heads") or n_heads)
    with open_tensors(base) as stored:
        has_head = "lm_head.weight" in stored and not config.get("tie_word_embeddings")
        for name in stored:
            if name == "lm_head.weight" and not has_head:
                continue
            renamed = gguf_name(name)
            if renamed is None:
                raise CheckpointError(f"{base} has {name}, which no Llama model has: {CONVERTER}")
            values: NDArray[np.float32] = stored[name].float().numpy()
            heads = heads_of(renamed, n_heads, n_kv_heads)
            if heads is not None and permuted:
                values = values[llama_rows(len(values), heads)]
            chosen = tensor_type(
                gguf_type,
                renamed,
                values.shape,
                n_layers=int(config["num_hidden_layers"]),
                heads_per_kv_head=n_heads // n_kv_heads,
                has_head=has_head,
            )
            dtype = GGMLQuantizationType[chosen]
            if chosen in _PLAIN:
                yield renamed, None, dtype, np.ascontiguousarray(values, dtype=_PLAIN[chosen])
            else:
                blocks = quantize_blocks(values, dtype)
                yield renamed, quants.quant_shape_to_byte_shape(values.shape, dtype), dtype, blocks


def _require_plain_llama(config: Mapping[str, Any], base: Path) -> None:
    """What QuanTile's converter knows; llama.cpp's own knows everything else."""
    found = config.get("architectures")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    wrong = [
        what
        for what, holds in (
            (f"architectures {found}", found != ["LlamaForCausalLM"]),
            ("quantization_config", "quantization_config" in config),
            ("attention_bias", bool(config.get("attention_bias"))),
            ("mlp_bias", bool(config.get("mlp_bias"))),
            (f"rope {rope}", (rope.get("rope_type") or rope.get("type") or "default") != "default"),
        )
        if holds
    ]
    if wrong:
        raise CheckpointError(
            f"{base} has {', '.join(wrong)}: QuanTile makes GGUF of unquantized LlamaForCausalLM "
            f"without biases and rope scaling; {CONVERTER}"
        )


def _add_metadata(
    writer: GGUFWriter, config: Mapping[str, Any], base: Path, gguf_type: str
) -> None:
    n_heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or hidden // n_heads)
    rope = config.get("rope_parameters") or config
    writer.add_name(base.name)
    writer.add_file_type(FILE_TYPES[gguf_type])
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or n_heads))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    words = read_vocabulary(base, int(config["vocab_size"]))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_token_merges(words.merges)
    for kind in ("bos", "eos", "pad"):
        number = config.get(f"{kind}_token_id")
        if isinstance(number, list):
            number = number[0]
        if number is not None:
            getattr(writer, f"add_{kind}_token_id")(int(number))
    writer.add_add_bos_token(_adds_bos(base, config))
    template = base / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else None
    text = text or _tokenizer_config(base).get("chat_template")
    if isinstance(text, str):
        writer.add_chat_template(text)


def _tokenizer_config(base: Path) -> dict[str, Any]:
    path = base / "tokenizer_config.json"
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _adds_bos(base: Path, config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint's tokenizer puts a BOS before every text."""
    bos = config.get("bos_token_id")
    return bos is not None and Tokenizer.from_file(str(base / "tokenizer.json")).encode("a").ids[
        :1
    ] == [bos]


def _require_same_tokens(base: Path, file: Path) -> None:
    reference = Tokenizer.from_file(str(base / "tokenizer.json"))
    texts = [text for exchange in check_exchanges() for text in exchange]
    with LlamaModel(file, vocab_only=True) as model:
        for text in (*texts, *_ODD_TEXTS):
            need = reference.encode(text, add_special_tokens=False).ids
            have = model.tokenize(text)
            if have != need:
                raise BuildError(
                    f"llama.cpp reads {text!r} as {have[:12]}, the checkpoint's tokenizer as "
                    f"{need[:12]}: {CONVERTER}"
                )
