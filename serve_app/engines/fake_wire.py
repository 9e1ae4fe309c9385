"""The bytes that vLLM's OpenAI server puts on the wire, without vLLM.

Shapes and key order follow vllm 0.32 `entrypoints/openai/{chat_completion,completion}/serving.py`
(`model_dump_json(exclude_unset=True)` for stream chunks). One difference: the end-of-sequence
token is not counted, so `usage.completion_tokens` equals the number of non-empty deltas.
"""

from typing import Any, Literal

import msgspec

WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india")
"""Token `i` of an answer with seed `s` is `" " + WORDS[(s + i) % len(WORDS)]`."""

DONE = b"data: [DONE]\n\n"

Kind = Literal["chat", "completion", "response"]


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerateRequest(msgspec.Struct):
    """The fields of a generation request that the fake engine acts on; others are ignored."""

    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[Any] | None = None
    input: str | list[Any] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    n: int | None = 1
    encoding_format: str = "float"
    echo: bool | None = False
    logprobs: int | bool | None = None
    tokens: list[int] | None = None

    @property
    def echoed(self) -> list[list[int]] | None:
        """Prompts in tokens whose log-probabilities are asked for; None where none are."""
        if not self.echo or not self.logprobs or self.prompt is None:
            return None
        if isinstance(self.prompt, list) and not all(isinstance(t, int) for t in self.prompt):
            return [_ids(each) for each in self.prompt]
        return [_ids(self.prompt)]

    def asked_tokens(self) -> int | None:
        """Output limit asked for, by any of its three names; None if the request sets none."""
        for asked in (self.max_completion_tokens, self.max_tokens, self.max_output_tokens):
            if asked is not None:
                return asked
        return None

    def prompt_ids(self) -> list[int]:
        """The prompt in tokens: ids as they are, text at one token per UTF-8 byte."""
        if self.messages is not None:
            contents = [message.get("content") for message in self.messages]
            return [token for content in contents for token in _ids(content)]
        return _ids(self.prompt if self.prompt is not None else self.input)

    def prompt_tokens(self) -> int:
        """Prompt length in tokens."""
        return len(self.prompt_ids())


class Answer(msgspec.Struct, frozen=True):
    """One answer as it will be sent: identity, counts and why it ends."""

    kind: Kind
    request_id: str
    created: int
    model: str
    prompt_tokens: int
    n_tokens: int
    finish_reason: Literal["length", "stop"]
    seed: int

    def usage(self, n_tokens: int) -> dict[str, int]:
        """vLLM's `usage` object after `n_tokens` output tokens."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + n_tokens,
            "completion_tokens": n_tokens,
        }

    def text(self) -> str:
        """The whole answer."""
        return "".join(token_text(self.seed, i) for i in range(self.n_tokens))


class StreamChunks:
    """Pre-built SSE events of one answer: per token a concatenation, nothing is encoded."""

    def __init__(self, answer: Answer, options: StreamOptions) -> None:
        self._answer = answer
        self._usage_asked = options.include_usage
        self._continuous = options.include_usage and options.continuous_usage_stats
        head = {
            "id": answer.request_id,
            "object": "chat.completion.chunk" if answer.kind == "chat" else "text_completion",
            "created": answer.created,
            "model": answer.model,
        }
        self._head = b"data: " + msgspec.json.encode(head)[:-1]
        body = b'"delta":{"content":"' if answer.kind == "chat" else b'"text":"'
        close = b'"},' if answer.kind == "chat" else b'",'
        tail = close + b'"logprobs":null,"finish_reason":%s,%s}]'
        extra = b'"token_ids":null'
        if answer.kind == "completion":
            extra = b'"stop_reason":null,"prompt_token_ids":null,' + extra
        reason = b'"%s"' % answer.finish_reason.encode()
        last_extra = extra if answer.kind == "completion" else b'"stop_reason":null,' + extra
        self._before = self._head + b',"choices":[{"index":0,' + body
        self._after = tail % (b"null", extra)
        self._after_last = tail % (reason, last_extra)

    def opening(self) -> tuple[bytes, ...]:
        """The chunk that opens a chat stream: the role and no text. None for completions."""
        if self._answer.kind != "chat":
            return ()
        choice = (
            b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},'
            b'"logprobs":null,"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null'
        )
        return (self._head + choice + self._close(0),)

    def token(self, index: int) -> bytes:
        """The event of token `index` (from 0); it carries `finish_reason` when it hits a limit."""
        answer = self._answer
        is_last = index == answer.n_tokens - 1 and answer.finish_reason == "length"
        text = token_text(answer.seed, index).encode()
        after = self._after_last if is_last else self._after
        return self._before + text + after + self._close(index + 1)

    def closing(self) -> tuple[bytes, ...]:
        """What follows the last token: a natural stop's `finish_reason`, usage, `[DONE]`."""
        n_tokens = self._answer.n_tokens
        events = []
        if self._answer.finish_reason == "stop":
            events.append(self._before + self._after_last + self._close(n_tokens))
        if self._usage_asked:
            usage = msgspec.json.encode(self._answer.usage(n_tokens))
            events.append(self._head + b',"choices":[],"usage":' + usage + b"}\n\n")
        return (*events, DONE)

    def _close(self, n_tokens: int) -> bytes:
        if not self._continuous:
            return b"}\n\n"
        return b',"usage":' + msgspec.json.encode(self._answer.usage(n_tokens)) + b"}\n\n"


def token_text(seed: int, index: int) -> str:
    """The text of token `index` in an answer with this seed."""
    return " " + WORDS[(seed + index) % len(WORDS)]


def full_body(answer: Answer) -> bytes:
    """The JSON body of an answer that is not streamed."""
    ending = {"logprobs": None, "finish_reason": answer.finish_reason, "stop_reason": None}
    choice: dict[str, Any]
    if answer.kind == "chat":
        message = {"role": "assistant", "content": answer.text(), "refusal": None}
        choice = {"index": 0, "message": message | {"tool_calls": []}, **ending}
    else:
        choice = {"index": 0, "text": answer.text(), **ending}
    return msgspec.json.encode(
        {
            "id": answer.request_id,
            "object": "chat.completion" if answer.kind == "chat" else "text_completion",
            "created": answer.created,
            "model": answer.model,
            "choices": [choice],
            "usage": answer.usage(answer.n_tokens),
        }
    )


def error_body(message: str, kind: str, status: int, param: str | None = None) -> bytes:
    """vLLM's error object (`entrypoints/serve/engine/protocol.py`: ErrorResponse)."""
    error = {"message": message, "type": kind, "param": param, "code": status}
    return msgspec.json.encode({"error": error})


def models_body(names: tuple[str, ...], max_model_len: int, created: int) -> bytes:
    """vLLM's `GET /v1/models`: one card per served name."""
    cards: list[dict[str, Any]] = [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": names[0],
            "parent": None,
            "max_model_len": max_model_len,
            "permission": [],
        }
        for name in names
    ]
    return msgspec.json.encode({"object": "list", "data": cards})


def _ids(content: Any) -> list[int]:
    if isinstance(content, str):
        return list(content.encode())
    if isinstance(content, list):
        return [token for part in content for token in _ids(part)]
    if isinstance(content, dict):
        return _ids(content.get("text", content.get("content")))
    return [content] if isinstance(content, int) else []
