"""The facts of a GGUF file's metadata under the names of a Hugging Face `config.json`."""

from collections.abc import Mapping
from typing import Any

from serve_app.domain.errors import CheckpointError
from serve_app.domain.tensors import TensorInfo
from serve_app.store.gguf_header import GgufHeader, LongArray, Value

ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "mistral3": ("mistral", "MistralForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen2moe": ("qwen2_moe", "Qwen2MoeForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
    "gemma": ("gemma", "GemmaForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "phi3": ("phi3", "Phi3ForCausalLM"),
    "deepseek2": ("deepseek_v2", "DeepseekV2ForCausalLM"),
}
"""llama.cpp's name of an architecture -> `model_type` and class of the Hugging Face one."""

_KEYS = {
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "sliding_window": "attention.sliding_window",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "n_shared_experts": "expert_shared_count",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "first_k_dense_replace": "leading_dense_block_count",
    "kv_lora_rank": "attention.kv_lora_rank",
    "q_lora_rank": "attention.q_lora_rank",
}
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


def gguf_config(header: GgufHeader, path: str) -> dict[str, Any]:
    """What `config.json` would say; keys that the metadata does not tell are left out.

    Raises CheckpointError, naming `path`, for an architecture that is not in `ARCHITECTURES` or has
    layers of different sizes.
    """
    keys = _Metadata(header.metadata, path)
    model_type, class_name = ARCHITECTURES[keys.architecture]
    config: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [class_name],
        "tie_word_embeddings": _HEAD not in header.tensors,
        "vocab_size": _vocabulary(header.tensors, keys),
    }
    for name, key in _KEYS.items():
        if (value := keys.get(key)) is not None:
            config[name] = value
    layers, extra = keys.get("block_count"), keys.get("nextn_predict_layers")
    if layers is not None:
        config["num_hidden_layers"] = layers - (extra or 0)
    if "kv_lora_rank" in config:
        config.update(_latent(keys))
    elif (head_dim := keys.get("attention.key_length")) is not None:
        config["head_dim"] = head_dim
    config.update(_window_pattern(keys))
    return config


class _Metadata:
    """The keys of one model, whose names start with its architecture."""

    def __init__(self, metadata: Mapping[str, Value], path: str) -> None:
        self.architecture = str(metadata.get("general.architecture"))
        self.path = path
        self._metadata = metadata
        if self.architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"{path} is a GGUF of architecture {self.architecture!r}: QuanTile can plan "
                f"{', '.join(ARCHITECTURES)}; take the model's safetensors"
            )

    def raw(self, key: str) -> Value | None:
        return self._metadata.get(f"{self.architecture}.{key}")

    def get(self, key: str) -> int | None:
        """A whole number; one per layer is taken for one number where all are the same."""
        value = self.raw(key)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(
                f"{self.path} has {self.architecture}.{key} = {value!r}: QuanTile has no formula "
                "for layers of different sizes; take a model whose layers are alike"
            )
        return value

    def vocabulary(self) -> int | None:
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, LongArray):
            return tokens.length
        return len(tokens) if isinstance(tokens, list) else None


def _vocabulary(tensors: Mapping[str, TensorInfo], keys: _Metadata) -> int:
    """The rows of the embedding, which is what takes memory; else the tokenizer's tokens."""
    if _EMBEDDING in tensors:
        return tensors[_EMBEDDING].shape[0]
    size = keys.get("vocab_size") or keys.vocabulary()
    if not size:
        raise CheckpointError(f"{keys.path} has neither {_EMBEDDING} nor a vocabulary")
    return size


def _latent(keys: _Metadata) -> dict[str, int]:
    """Head sizes of latent attention; newer files keep the compressed ones apart (`*_mla`)."""
    query = keys.get("attention.key_length_mla") or keys.get("attention.key_length")
    value = keys.get("attention.value_length_mla") or keys.get("attention.value_length")
    rope = keys.get("rope.dimension_count")
    if query is None or value is None or rope is None:
        raise CheckpointError(
            f"{keys.path} lacks attention.key_length, attention.value_length or "
            "rope.dimension_count: convert the model again with a current llama.cpp"
        )
    heads = keys.get("attention.head_count") or 0
    return {
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": query - rope,
        "v_head_dim": value,
        "num_key_value_heads": heads,
    }


def _window_pattern(keys: _Metadata) -> dict[str, Any]:
    """Which layers have the window, where the file tells it: one flag per layer, or a period."""
    pattern = keys.raw("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        kinds = ["sliding_attention" if windowed else "full_attention" for windowed in pattern]
        return {"layer_types": kinds}
    return {} if pattern is None else {"sliding_window_pattern": pattern}
