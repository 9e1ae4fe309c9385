"""Log-probabilities of a prompt that is echoed: a fixed bigram table of bytes, by seed.

Two engines of one seed agree to the digit; the table of another seed is the same but for
`NOISE` of its own, as a quantized variant's would be.
"""

import functools
import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec

VOCAB = 256
NOISE = 0.05
LEAST = -9999.0


@functools.lru_cache(maxsize=1024)
def _row(previous: int, seed: int) -> tuple[float, ...]:
    """Natural log-probabilities of every next token."""
    common, own = random.Random(f"row:{previous}"), random.Random(f"noise:{seed}:{previous}")
    logits = [common.gauss(0, 2) + NOISE * own.gauss(0, 1) for _ in range(VOCAB)]
    total = math.log(sum(map(math.exp, logits)))
    return tuple(logit - total for logit in logits)


def echo_body(
    prompts: Sequence[Sequence[int]], logprobs: int, model: str, created: int, seed: int
) -> bytes:
    """vLLM's completion with `echo`, `logprobs`, `return_tokens_as_token_ids`, one token made."""
    choices: list[dict[str, Any]] = []
    for index, prompt in enumerate(prompts):
        rows = [_row(token % VOCAB, seed) for token in prompt]
        made = max(range(VOCAB), key=rows[-1].__getitem__)
        tokens = [*prompt, made]
        own: list[float | None] = [None]
        top: list[dict[str, float] | None] = [None]
        for row, token in zip(rows, tokens[1:], strict=True):
            best = sorted(range(VOCAB), key=row.__getitem__, reverse=True)[:logprobs]
            entry = {f"token_id:{each}": row[each] for each in best}
            value = row[token] if token < VOCAB else LEAST
            own.append(value)
            top.append(entry | {f"token_id:{token}": value})
        found = {
            "text_offset": list(range(len(tokens))),
            "token_logprobs": own,
            "tokens": [f"token_id:{token}" for token in tokens],
            "top_logprobs": top,
        }
        text = "".join(chr(token) for token in tokens if token < 0x110000)
        choices.append({"index": index, "text": text, "logprobs": found, "finish_reason": "length"})
    n_prompt = sum(map(len, prompts))
    usage = {"prompt_tokens": n_prompt, "completion_tokens": len(prompts)}
    body = {"id": "cmpl-echo", "object": "text_completion", "created": created, "model": model}
    usage["total_tokens"] = sum(usage.values())
    return msgspec.json.encode(body | {"choices": choices, "usage": usage})
