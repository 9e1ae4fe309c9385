"""One GGUF model through llama.cpp's C interface: its tokenizer and its logits."""

import ctypes as c
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.errors import CheckpointError, EngineError, MalformedRequestError
from serve_app.domain.units import MIB
from serve_app.engines.llamacpp_lib import Batch, complaint, library

MAX_LOGITS_BYTES = 64 * MIB
"""Logits of one step of `logits`: 512 tokens of a small vocabulary, 131 of one of 128,000."""
MAX_STEP_TOKENS = 512

Logits = NDArray[np.float32]


class LlamaModel:
    """A model in this process. Not for two threads at once. Close it, or use it in `with`."""

    def __init__(
        self,
        file: Path,
        *,
        vocab_only: bool = False,
        context_length: int | None = None,
        n_threads: int = 1,
    ) -> None:
        """Load it; with `vocab_only` only the tokenizer. Raises CheckpointError, ConfigError.

        `context_length`: most tokens of a sequence, which memory follows; None: all that the model
        was trained for.
        """
        self._lib = lib = library()
        params = lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        self._n_threads = n_threads
        self._context: int | None = None
        self._model = lib.llama_model_load_from_file(os.fsencode(file), params)
        if not self._model:
            raise CheckpointError(f"llama.cpp cannot load {file}: {complaint()}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        trained = 0 if vocab_only else int(lib.llama_model_n_ctx_train(self._model))
        self.context_length = min(trained, context_length or trained)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free its memory; safe to call twice."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = None

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids; special tokens that are written out in the text become such."""
        raw = text.encode()
        room = len(raw) + 8  # no token is shorter than a byte; BOS and EOS come on top
        tokens = np.empty(room, dtype=np.int32)
        n = self._lib.llama_tokenize(
            self._vocab, raw, len(raw), tokens.ctypes.data, room, add_special, True
        )
        if n < 0:
            raise EngineError(f"llama.cpp cannot tokenize {len(raw)} bytes: it wants {-n} tokens")
        ids: list[int] = tokens[:n].tolist()
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes of one token, special tokens written out. Raises MalformedRequestError."""
        self.require_tokens([token])
        room = 64
        while True:
            buffer = c.create_string_buffer(room)
            n = self._lib.llama_token_to_piece(self._vocab, token, buffer, room, 0, True)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of the tokens; bytes that are not UTF-8 become replacement characters."""
        return b"".join(map(self.piece, tokens)).decode(errors="replace")

    def require_tokens(self, tokens: Sequence[int]) -> None:
        """Raise MalformedRequestError for a token that the vocabulary does not have."""
        for token in tokens:
            if not 0 <= token < self.n_vocab:
                raise MalformedRequestError(
                    f"token {token} is not in the vocabulary: need 0 to {self.n_vocab - 1}"
                )

    def logits(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """Logits `[steps, n_vocab]` after each token of a sequence, several positions at a time.

        Each array is valid until the next is asked for. Raises MalformedRequestError for a sequence
        that is empty, too long, or has unknown tokens; EngineError when llama.cpp fails.
        """
        if not 0 < len(tokens) <= self.context_length:
            raise MalformedRequestError(
                f"the prompt has {len(tokens)} tokens: need 1 to {self.context_length}"
            )
        self.require_tokens(tokens)
        step = self._step_tokens()
        context = self._ready_context(step)
        self._lib.llama_memory_clear(self._lib.llama_get_memory(context), True)
        ids = np.asarray(tokens, dtype=np.int32)
        for start in range(0, len(ids), step):
            chunk = ids[start : start + step]
            _decode(self._lib, context, chunk, start)
            flat = self._lib.llama_get_logits(context)
            yield np.ctypeslib.as_array(flat, shape=(len(chunk), self.n_vocab))

    def _step_tokens(self) -> int:
        by_memory = MAX_LOGITS_BYTES // (4 * self.n_vocab)
        return max(16, min(MAX_STEP_TOKENS, by_memory, self.context_length))

    def _ready_context(self, step: int) -> int:
        if self._context is None:
            params = self._lib.llama_context_default_params()
            params.n_ctx = self.context_length
            params.n_batch = params.n_ubatch = params.n_outputs_max = step
            params.n_threads = params.n_threads_batch = self._n_threads
            self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise EngineError(f"llama.cpp cannot make a context: {complaint()}")
        return self._context


def _decode(lib: c.CDLL, context: int, chunk: NDArray[np.int32], start: int) -> None:
    """One step of sequence 0, logits wanted at every position."""
    n = len(chunk)
    chunk = np.ascontiguousarray(chunk)
    positions = np.arange(start, start + n, dtype=np.int32)
    one, sequence = np.ones(n, dtype=np.int32), np.zeros(1, dtype=np.int32)
    sequences = np.full(n, sequence.ctypes.data, dtype=np.uintp)
    wanted = np.ones(n, dtype=np.int8)
    batch = Batch(
        n_tokens=n,
        token=chunk.ctypes.data,
        embd=None,
        pos=positions.ctypes.data,
        n_seq_id=one.ctypes.data,
        seq_id=sequences.ctypes.data,
        logits=wanted.ctypes.data,
    )
    if (status := lib.llama_decode(context, batch)) != 0:
        raise EngineError(f"llama_decode answers {status}: {complaint()}")
