"""Completions with `echo`: the prompt back, with its log-probabilities, as vLLM gives them."""

import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from serve_app.domain.errors import MalformedRequestError
from serve_app.engines.llamacpp_process import Answer, Entry, Question

MAX_LOGPROBS = 20
"""vLLM's default limit."""

Body = dict[str, Any]
Ask = Callable[[Question], Awaitable[Answer]]


async def echoed(body: Body, model: str, ask: Ask) -> Body:
    """The answer to a completions request that has `echo: true`.

    Prompts are text, token ids, or several of either. At most one token is generated, the most
    likely one. Raises MalformedRequestError for what goes beyond that.
    """
    n_new = _number(body, "max_tokens", 16)
    n_top = _number(body, "logprobs", None)
    if n_new not in (0, 1) or body.get("stream") or _number(body, "n", 1) != 1:
        raise MalformedRequestError(
            "with `echo` llama.cpp scores prompts and writes at most one token: set max_tokens to "
            "0 or 1, and leave out `stream` and `n`"
        )
    if n_new == 1 and body.get("temperature") not in (0, 0.0):
        raise MalformedRequestError(
            "with `echo` the one token is the most likely one: set temperature to 0, or max_tokens "
            "to 0"
        )
    if n_top is not None and not 0 <= n_top <= MAX_LOGPROBS:
        raise MalformedRequestError(f"logprobs is {n_top}: need 0 to {MAX_LOGPROBS}")
    prompts = _prompts(body.get("prompt"))
    special = bool(body.get("add_special_tokens", True))
    by_id = bool(body.get("return_tokens_as_token_ids"))
    choices, n_tokens = [], 0
    for index, prompt in enumerate(prompts):
        answer = await ask(Question(prompt, max(1, n_top or 0), special))
        n_tokens += len(answer.tokens)
        choices.append(_choice(index, answer, n_new, n_top, by_id))
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": n_tokens,
            "completion_tokens": n_new * len(prompts),
            "total_tokens": n_tokens + n_new * len(prompts),
        },
    }


def _choice(index: int, answer: Answer, n_new: int, n_top: int | None, by_id: bool) -> Body:
    scored = [
        Entry(token, text, logprob)
        for token, text, logprob in zip(
            answer.tokens[1:], answer.texts[1:], answer.logprobs, strict=True
        )
    ]
    alternatives = answer.top[:-1]
    if n_new:
        scored.append(answer.top[-1][0])
        alternatives = answer.top
    texts = [answer.texts[0], *(entry.text for entry in scored)]
    return {
        "index": index,
        "text": "".join(texts),
        "logprobs": None
        if n_top is None
        else _logprobs(answer, scored, alternatives, n_top, by_id),
        "finish_reason": "length",
        "stop_reason": None,
    }


def _logprobs(
    answer: Answer, scored: list[Entry], alternatives: list[list[Entry]], n_top: int, by_id: bool
) -> Body:
    first = _name(Entry(answer.tokens[0], answer.texts[0], 0.0), by_id)
    names = [first, *(_name(entry, by_id) for entry in scored)]
    tables: list[dict[str, float] | None] = [None]
    for entry, others in zip(scored, alternatives, strict=True):
        table = {_name(entry, by_id): entry.logprob}
        for other in others[:n_top]:
            table.setdefault(_name(other, by_id), other.logprob)
        tables.append(table)
    offsets, position = [], 0
    for text in [answer.texts[0], *(entry.text for entry in scored)]:
        offsets.append(position)
        position += len(text)
    return {
        "tokens": names,
        "token_logprobs": [None, *(entry.logprob for entry in scored)],
        "top_logprobs": tables,
        "text_offset": offsets,
    }


def _name(entry: Entry, by_id: bool) -> str:
    return f"token_id:{entry.token}" if by_id else entry.text


def _prompts(prompt: Any) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(_is_token(item) for item in prompt):
            return [prompt]
        if all(isinstance(item, str) or _is_tokens(item) for item in prompt):
            return prompt
    raise MalformedRequestError("`prompt` is a string, a list of token ids, or a list of those")


def _is_tokens(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(_is_token(token) for token in item)


def _is_token(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def _number(body: Body, name: str, default: int | None) -> int | None:
    value = body.get(name, default)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedRequestError(f"{name} is a whole number, have {value!r}")
    return value
