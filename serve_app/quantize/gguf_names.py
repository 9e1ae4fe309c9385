"""Names of a Llama checkpoint's tensors: Hugging Face's and GGUF's."""

import re

_FIXED = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_OF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_BACK_FIXED = {gguf: name for name, gguf in _FIXED.items()}
_BACK_OF_LAYER = {gguf: name for name, gguf in _OF_LAYER.items()}

_HF_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")
_GGUF_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")


def gguf_name(name: str) -> str | None:
    """GGUF's name of a tensor; None for one that a Llama model does not have."""
    match = _HF_LAYER.fullmatch(name)
    if match is None:
        return _FIXED.get(name)
    inner = _OF_LAYER.get(match[2])
    return inner and f"blk.{match[1]}.{inner}.weight"


def hugging_face_name(name: str) -> str | None:
    """The way back; None for a tensor that has no counterpart (`rope_freqs.weight`)."""
    match = _GGUF_LAYER.fullmatch(name)
    if match is None:
        return _BACK_FIXED.get(name)
    inner = _BACK_OF_LAYER.get(match[2])
    return inner and f"model.layers.{match[1]}.{inner}.weight"
