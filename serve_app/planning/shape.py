"""The architecture facts of a decoder, read from its `config.json`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """What weights, KV cache and activations follow from.

    `n_window_layers` of the `n_layers` attend to the last `window` tokens only (Gemma-2, Mistral
    v0.1); the others see everything. Multi-head latent attention (DeepSeek) has `latent_dim` > 0:
    its layers cache `latent_dim + rope_dim` numbers per token in place of keys and values. A
    mixture of experts has `n_experts` > 0, each of `expert_size`, in all layers but the first
    `n_dense_layers`, plus `n_shared_experts` that every token visits.
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
