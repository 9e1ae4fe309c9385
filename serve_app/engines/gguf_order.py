"""How llama.cpp orders the rows of q and k in files of architecture `llama`.

Its rotary embedding turns neighbouring rows, Hugging Face's the two halves of a head. So its
converter interleaves the halves of each head (`permute` in llama.cpp's conversion script), and who
runs such a file with Hugging Face's rotary embedding has to undo it. Rows are quantized one by one,
so that the order of quantized rows can be changed too.
"""

import re

import numpy as np
from numpy.typing import NDArray

PERMUTED_ARCHITECTURES = frozenset({"llama"})
"""Others of `serve_app.store.gguf_config` keep Hugging Face's order."""

_PROJECTION = re.compile(r"blk\.\d+\.attn_(?P<kind>[qk])\.(weight|bias)")


def llama_rows(n_rows: int, n_heads: int) -> NDArray[np.intp]:
    """`gguf = hugging_face[llama_rows(...)]`. Raises ValueError unless heads are even and whole."""
    if n_rows % (2 * n_heads):
        raise ValueError(f"{n_rows} rows are no {n_heads} heads of an even number of rows")
    rows = np.arange(n_rows).reshape(n_heads, 2, -1)
    return rows.swapaxes(1, 2).reshape(-1)


def hugging_face_rows(n_rows: int, n_heads: int) -> NDArray[np.intp]:
    """`hugging_face = gguf[hugging_face_rows(...)]`: the way back from `llama_rows`."""
    return np.argsort(llama_rows(n_rows, n_heads))


def heads_of(gguf_name: str, n_heads: int, n_kv_heads: int) -> int | None:
    """How many heads the rows of this tensor are ordered by; None for all but q and k."""
    match = _PROJECTION.fullmatch(gguf_name)
    if match is None:
        return None
    return n_heads if match["kind"] == "q" else n_kv_heads
