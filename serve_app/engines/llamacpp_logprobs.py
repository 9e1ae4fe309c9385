"""Log-probabilities of given tokens by llama.cpp, which its server does not tell of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve_app.engines.llamacpp_model import LlamaModel, Logits
from serve_app.store.gguf_tokenizer import gguf_file

Values = NDArray[np.generic]


@dataclass(frozen=True)
class PromptScore:
    """Of n tokens: n - 1 logprobs (nats) of those after the first, and the most likely tokens.

    `top` has n entries: `top[i]` are (token, logprob) pairs, the most likely first, for position
    i + 1; the last is what would follow the prompt.
    """

    logprobs: list[float]
    top: list[list[tuple[int, float]]]


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Row by row, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def score_prompt(model: LlamaModel, tokens: Sequence[int], n_top: int) -> PromptScore:
    """Score one sequence; `n_top` alternatives per position. Raises as `LlamaModel.logits`."""
    logprobs: list[float] = []
    top: list[list[tuple[int, float]]] = []
    n_top = min(n_top, model.n_vocab)
    for logits in model.logits(tokens):
        scores = log_softmax(logits)
        for row in scores:
            position = len(top)
            if position + 1 < len(tokens):
                logprobs.append(float(row[tokens[position + 1]]))
            best = np.argpartition(-row, n_top - 1)[:n_top] if n_top else np.empty(0, dtype=int)
            ranked = best[np.lexsort((best, -row[best]))]
            top.append([(int(token), float(row[token])) for token in ranked])
    return PromptScore(logprobs, top)


def engine_logprobs(
    folder: Path, rows: Sequence[Sequence[int]], n_threads: int = 1
) -> tuple[Values, Values]:
    """For each token after the first of each row: its logprob, and the most likely token there.

    The correctness gate's question (`serve_app.quantize.gate`), answered by the kernels that serve.
    Raises CheckpointError for a folder without a GGUF that llama.cpp loads.
    """
    logprobs: list[float] = []
    best: list[int] = []
    longest = max(map(len, rows), default=1)
    with LlamaModel(gguf_file(folder), context_length=longest, n_threads=n_threads) as model:
        for row in rows:
            score = score_prompt(model, row, 1)
            logprobs += score.logprobs
            best += [entries[0][0] for entries in score.top[:-1]]
    return np.array(logprobs), np.array(best)
