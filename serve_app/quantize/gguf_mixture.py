"""Which block type each tensor of a dense Llama model gets, by llama.cpp's mixtures.

The rules are those of `llama_tensor_get_type` (llama.cpp, src/llama-quant.cpp) without an
importance matrix: more bits for values, for the feed-forward's way down and for the head, and in
the `_M` types for the first and last eighth of the layers. Every type was compared with a file by
llama.cpp's own `llama_model_quantize`, byte for byte (`serve_app/decisions/0012-gguf.md`).
"""

import re

FILE_TYPES = {
    "F16": 1,
    "Q4_0": 2,
    "Q8_0": 7,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
}
"""`general.file_type` (enum llama_ftype): for people; loaders read each tensor's own type."""

_MAIN = {"Q3_K_M": "Q3_K", "Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}
SUPER_BLOCK = 256
_WITHOUT_SUPER_BLOCKS = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""What rows get that are no multiple of 256 numbers long."""
_BLOCK = 32
_LAYER = re.compile(r"blk\.(?P<layer>\d+)\.(?P<kind>.+)\.weight")


def tensor_type(
    file_type: str,
    name: str,
    shape: tuple[int, ...],
    *,
    n_layers: int,
    heads_per_kv_head: int,
    has_head: bool,
) -> str:
    """The ggml type of one tensor, by its GGUF name. `shape` is rows first.

    `has_head`: the file has `output.weight`; else the embedding is the head as well.
    """
    if len(shape) < 2:
        return "F32"
    if file_type == "F16":
        return "F16"
    wanted = _wanted(file_type, name, n_layers, heads_per_kv_head, has_head)
    if wanted in _WITHOUT_SUPER_BLOCKS and shape[-1] % SUPER_BLOCK:
        wanted = _WITHOUT_SUPER_BLOCKS[wanted]
    return wanted if shape[-1] % _BLOCK == 0 else "F16"


def _wanted(
    file_type: str, name: str, n_layers: int, heads_per_kv_head: int, has_head: bool
) -> str:
    main = _MAIN.get(file_type, file_type)
    if name == "output.weight" or (name == "token_embd.weight" and not has_head):
        return main if main == "Q8_0" else "Q6_K"
    match = _LAYER.fullmatch(name)
    if match is None:
        return main
    layer, kind = int(match["layer"]), match["kind"]
    more, otherwise = _SPECIAL.get((file_type, kind), (main, main))
    chosen = more if _gets_more(file_type, kind, layer, n_layers) else otherwise
    if kind == "attn_v" and file_type == "Q2_K" and heads_per_kv_head >= 4:
        chosen = "Q4_K"
    is_70b = n_layers == 80 and heads_per_kv_head > 1
    return "Q5_K" if kind == "attn_v" and is_70b and chosen in ("Q3_K", "Q4_K") else chosen


_SPECIAL = {
    ("Q2_K", "attn_v"): ("Q3_K", "Q3_K"),
    ("Q2_K", "attn_output"): ("Q3_K", "Q3_K"),
    ("Q2_K", "ffn_down"): ("Q3_K", "Q3_K"),
    ("Q3_K_M", "attn_v"): ("Q5_K", "Q4_K"),
    ("Q3_K_M", "attn_output"): ("Q4_K", "Q4_K"),
    ("Q3_K_M", "ffn_down"): ("Q5_K", "Q4_K"),
    ("Q4_K_M", "attn_v"): ("Q6_K", "Q4_K"),
    ("Q4_K_M", "ffn_down"): ("Q6_K", "Q4_K"),
    ("Q5_K_M", "attn_v"): ("Q6_K", "Q5_K"),
    ("Q5_K_M", "ffn_down"): ("Q6_K", "Q5_K"),
}
"""Types of the layers that get more, and of the others."""


def _gets_more(file_type: str, kind: str, layer: int, n_layers: int) -> bool:
    if file_type == "Q3_K_M":
        return layer < (2 if kind == "attn_v" else n_layers // 16)
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
