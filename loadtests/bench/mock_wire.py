"""The bytes of the mock's answers, in shape and size (260 bytes per token) those of vLLM 0.32."""

import msgspec

_WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india")
_HEAD = b'{"id":"chatcmpl-0123456789abcdef0123456789abcdef","created":1763740800,'


class Usage(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool = False


class Request(msgspec.Struct):
    """What the mock reads of a request; it counts no prompt tokens."""

    model: str = ""
    user: str = ""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream_options: Usage = msgspec.field(default_factory=Usage)

    @property
    def n_tokens(self) -> int:
        """Length of the answer: always what was asked for."""
        return self.max_completion_tokens or self.max_tokens or 16


class Wire:
    """Chunks of a streamed chat answer, made before the load."""

    def __init__(self) -> None:
        self._tokens = [chunk(_event(b'{"content":" %s"}' % word.encode())) for word in _WORDS]
        self._role = chunk(_event(b'{"role":"assistant","content":""}'))
        self._finish = chunk(_event(b'{"content":""}', b'"length"'))

    def opening(self, variant: str) -> bytes:
        """Response head and the event that says the role and nothing else."""
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"x-variant: %s\r\nTransfer-Encoding: chunked\r\n\r\n%s"
        ) % (variant.encode("latin-1"), self._role)

    def token(self, index: int) -> bytes:
        """The chunk of token `index` (from 0)."""
        return self._tokens[index % len(self._tokens)]

    def closing(self, n_tokens: int, with_usage: bool) -> bytes:
        """What follows the last token: finish reason, usage, `[DONE]`, the last chunk."""
        count = b'{"prompt_tokens":9,"total_tokens":%d,"completion_tokens":%d}'
        usage = b"data: " + _HEAD + b'"object":"chat.completion.chunk","choices":[],"usage":'
        usage += count % (9 + n_tokens, n_tokens) + b"}\n\n"
        parts = [self._finish, chunk(usage) if with_usage else b"", chunk(b"data: [DONE]\n\n")]
        return b"".join(parts) + b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def json_response(status: str, body: object) -> bytes:
    """A whole response that is not streamed."""
    data = msgspec.json.encode(body)
    head = "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    return head.format(status, len(data)).encode() + data


def _event(delta: bytes, finish: bytes = b"null") -> bytes:
    event = b"data: " + _HEAD + b'"object":"chat.completion.chunk","model":"reference@variant",'
    event += b'"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s,' % (
        delta,
        finish,
    )
    event += b'"token_ids":null}]}\n\n'
    return event
