"""The architecture facts of a decoder, read from its `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.domain.errors import CheckpointError


@dataclass(frozen=True)
class ModelShape:
    """What weights, KV cache and activations follow from.

    `n_window_layers` of the `n_layers` attend to the last `window` tokens only (Gemma-2, Mistral
    v0.1); the others see everything. Multi-head latent attention (DeepSeek) has `latent_dim` > 0:
    its layers cache `latent_dim + rope_dim` numbers per token in place of keys and values, and its
    query and value heads have `nope_dim + rope_dim` and `value_dim` numbers. A mixture of experts
    has `n_experts` > 0, each of `expert_size`, in all layers but `n_dense_layers`, plus
    `n_shared_experts` that every token visits.
    """

    architecture: str
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    tied_embeddings: bool
    gated_mlp: bool = True
    window: int = 0
    n_window_layers: int = 0
    latent_dim: int = 0
    rope_dim: int = 0
    n_experts: int = 0
    n_experts_per_token: int = 0
    n_shared_experts: int = 0
    expert_size: int = 0
    n_dense_layers: int = 0
    nope_dim: int = 0
    value_dim: int = 0
    query_rank: int = 0
    """Rank of the compressed query of latent attention; 0 where the query is not compressed."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    """Queries and keys are normalised per head (Qwen3, Gemma-3)."""
    norms_per_layer: int = 2

    @property
    def n_expert_layers(self) -> int:
        """Layers with a mixture of experts."""
        return self.n_layers - self.n_dense_layers if self.n_experts else 0


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a Hugging Face `config.json` tells, with the defaults of its architecture.

    Raises CheckpointError for a configuration without a key that the shape needs, or with attention
    that is not one of: all tokens, sliding window, latent.
    """
    keys = _Keys(config)
    hidden, heads = keys.number("hidden_size"), keys.number("num_attention_heads")
    layers = keys.number("num_hidden_layers")
    window, window_layers = _window(keys, layers)
    latent = keys.number("kv_lora_rank", 0)
    model_type = str(keys.get("model_type", ""))
    shape = {
        "architecture": keys.architecture,
        "n_layers": layers,
        "hidden_size": hidden,
        "n_heads": heads,
        "n_kv_heads": keys.number("num_key_value_heads", heads),
        "head_dim": keys.number("head_dim", hidden // heads),
        "intermediate_size": keys.number("intermediate_size"),
        "vocab_size": keys.number("vocab_size"),
        "context_length": keys.number("max_position_embeddings"),
        "tied_embeddings": bool(keys.get("tie_word_embeddings", model_type in _TIED)),
        "window": window,
        "n_window_layers": window_layers,
        "qkv_bias": bool(keys.get("attention_bias", model_type in _QKV_BIAS)),
        "output_bias": bool(keys.get("attention_bias", False)) and model_type not in _QKV_BIAS,
        "mlp_bias": bool(keys.get("mlp_bias", False)),
        "head_norms": model_type in _HEAD_NORMS,
        "norms_per_layer": 4 if model_type in _FOUR_NORMS else 2,
        **(_latent(keys, latent) if latent else {}),
        **_experts(keys, layers),
    }
    return ModelShape(**shape)


_TIED = {"gemma", "gemma2", "gemma3", "gemma3_text"}
_QKV_BIAS = {"qwen2", "qwen2_moe"}
_HEAD_NORMS = {"qwen3", "qwen3_moe", "gemma3", "gemma3_text"}
_FOUR_NORMS = {"gemma2", "gemma3", "gemma3_text"}
_GEMMA_WINDOW_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6}
"""Of so many layers in a row, the last one sees everything."""
_DEFAULTS = {
    "gemma3_text": {
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}
"""What published configurations leave to transformers (`Gemma3TextConfig`)."""
_NOT_SIZED = {
    "attention_chunk_size",
    "cross_attention_layers",
    "index_topk",
    "linear_num_value_heads",
    "mamba_d_state",
    "num_kv_shared_layers",
    "ssm_cfg",
}
"""Keys of layers that keep a state, or attend, in a way that this planner has no formula for."""
_LAYER_TYPES = {"full_attention", "sliding_attention"}


class _Keys:
    """The text model's part of a configuration; a missing key is an error that names it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        inner = config.get("text_config")
        inner = inner if isinstance(inner, Mapping) else {}
        given = {**config, **inner}
        self._values = {**_DEFAULTS.get(str(given.get("model_type")), {}), **given}
        names = config.get("architectures") or ["?"]
        self.architecture = str(names[0])
        if config.get("is_encoder_decoder"):
            raise CheckpointError(
                f"{self.architecture} is an encoder-decoder: its memory cannot be planned; "
                "give a decoder-only model"
            )
        odd = sorted(_NOT_SIZED & {key for key, value in self._values.items() if value})
        odd += sorted(set(self.get("layer_types", [])) - _LAYER_TYPES)
        if odd:
            raise CheckpointError(
                f"{self.architecture} has {', '.join(odd)}: layers whose memory QuanTile has no "
                "formula for; measure the variant on its GPU and give the calibration values"
            )

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default where it is absent or null."""
        value = self._values.get(key)
        return default if value is None else value

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 0."""
        value = self.get(key, default)
        if value is None:
            raise CheckpointError(
                f"the config.json of {self.architecture} lacks {key!r}: needed to plan its memory"
            )
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise CheckpointError(
                f"the config.json of {self.architecture} has {key}: {value!r}; need a whole number"
            )
        return value


def _window(keys: _Keys, layers: int) -> tuple[int, int]:
    """The window and how many layers have it; (0, 0) for none."""
    window = keys.number("sliding_window", 0)
    if not window or keys.get("use_sliding_window") is False:
        return 0, 0
    types = keys.get("layer_types")
    if types is not None:
        return _none_if_no_layers(window, sum(kind == "sliding_attention" for kind in types))
    model_type = str(keys.get("model_type", ""))
    every = keys.number("sliding_window_pattern", _GEMMA_WINDOW_EVERY.get(model_type, 0))
    if every:
        return _none_if_no_layers(window, layers - layers // every)
    if model_type in _QKV_BIAS | {"qwen3", "qwen3_moe"}:  # the first layers see everything
        return _none_if_no_layers(window, max(layers - keys.number("max_window_layers", 0), 0))
    return window, layers


def _none_if_no_layers(window: int, layers: int) -> tuple[int, int]:
    return (window, layers) if layers else (0, 0)


def _latent(keys: _Keys, latent: int) -> dict[str, Any]:
    nope, rope = keys.number("qk_nope_head_dim"), keys.number("qk_rope_head_dim")
    return {
        "latent_dim": latent,
        "rope_dim": rope,
        "nope_dim": nope,
        "value_dim": keys.number("v_head_dim"),
        "query_rank": keys.number("q_lora_rank", 0),
        "head_dim": nope + rope,
    }


def _experts(keys: _Keys, layers: int) -> dict[str, Any]:
    """The mixture of experts under the names of Mixtral, DeepSeek and Qwen."""
    n_experts = next(
        (
            keys.number(key)
            for key in ("num_local_experts", "n_routed_experts", "num_experts")
            if keys.get(key)
        ),
        0,
    )
    if n_experts < 2:
        return {}
    size = keys.number("moe_intermediate_size", keys.number("intermediate_size"))
    shared = keys.number("shared_expert_intermediate_size", 0)
    if shared % size:
        raise CheckpointError(
            f"{keys.architecture} has a shared expert of {shared}, which is not a multiple of its "
            f"experts' {size}: QuanTile has no formula for it"
        )
    step = keys.number("decoder_sparse_step", keys.number("moe_layer_freq", 1)) or 1
    dense = set(keys.get("mlp_only_layers", [])) | set(
        range(keys.number("first_k_dense_replace", 0))
    )
    offset = 1 if keys.get("decoder_sparse_step") else 0
    sparse = [i for i in range(layers) if i not in dense and (i + offset) % step == 0]
    return {
        "n_experts": n_experts,
        "n_experts_per_token": keys.number("num_experts_per_tok"),
        "n_shared_experts": keys.number("n_shared_experts", shared // size),
        "expert_size": size,
        "n_dense_layers": layers - len(sparse),
    }
