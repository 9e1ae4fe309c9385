"""Memory of a llama.cpp engine on this machine's CPU: what its process may hold at most."""

from serve_app.domain.units import MIB
from serve_app.planning.facts import CheckpointFacts
from serve_app.planning.kv import kv_bytes_per_token

DEFAULT_MAX_NUM_SEQS = 8
DEFAULT_BATCH_TOKENS = 2048
"""llama.cpp's own `n_batch`; it computes 512 of them at once (`n_ubatch`)."""

PROCESS_BYTES = 128 * MIB
"""Python, the library and its threads: 62 MiB measured."""
LOGITS_BYTES = 64 * MIB
"""Of prompts that are scored (`serve_app.engines.llamacpp_model`)."""
_MICRO_BATCH = 512
_COPIES = 2
"""Of the weights: as the file has them, and repacked for the kernels. The model is loaded a second
time when a prompt is scored; the file's pages are shared then."""


def llamacpp_bytes(
    facts: CheckpointFacts, max_model_len: int | None = None, max_num_seqs: int | None = None
) -> int:
    """Bytes with every slot full. The cache is of 16-bit floats, a whole context for each slot."""
    shape = facts.shape
    tokens = (max_model_len or shape.context_length) * (1 + (max_num_seqs or DEFAULT_MAX_NUM_SEQS))
    cache = tokens * kv_bytes_per_token(shape, 2)
    widest = shape.vocab_size + 4 * shape.hidden_size
    activation = 4 * _MICRO_BATCH * widest * 2
    weights = facts.weights.total_bytes * (_COPIES + 1)
    return weights + cache + activation + LOGITS_BYTES + PROCESS_BYTES
