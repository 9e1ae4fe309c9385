"""OpenAI's protocol in front of llama.cpp's own server, as vLLM speaks it.

Completions, chat and the like are relayed byte for byte. What the two differ in is done here: names
of models, `/tokenize` and `/detokenize`, and completions with `echo`, which tell the
log-probabilities of the prompt (`serve_app.engines.llamacpp_echo`).
"""

import asyncio
from typing import Any, Protocol

import msgspec

from serve_app.domain.errors import (
    CallerError,
    EngineError,
    MalformedRequestError,
    MethodNotAllowedError,
    QuantileError,
    UnknownModelError,
    UnknownPathError,
)
from serve_app.engines.engine import Message, Receive, Scope, Send
from serve_app.engines.fake_asgi import lifespan, read_body, respond, until_disconnect
from serve_app.engines.llamacpp_echo import echoed
from serve_app.engines.llamacpp_process import Answer, ChildSettings, Question
from serve_app.engines.llamacpp_upstream import Upstream

RELAYED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"})
_GET = frozenset({"/health", "/metrics", "/v1/models"})
_POST = RELAYED | {"/tokenize", "/detokenize"}
DEFAULT_MAX_TOKENS = 16
"""OpenAI's, of completions that are no chat."""
_NOTICE_STEPS, _NOTICE_STEP_S = 20, 0.01
_CREATED = 0
"""When the model was made: a file does not tell."""

Body = dict[str, Any]


class Child(Protocol):
    """What the application asks of llama.cpp's process."""

    @property
    def alive(self) -> bool:
        """Whether it still runs."""

    async def ask(self, question: Question) -> Answer:
        """Score a prompt."""


class LlamaCppApp:
    """The ASGI application of one engine."""

    def __init__(self, names: tuple[str, ...], child: Child, settings: ChildSettings) -> None:
        self.context_length = settings.context_length
        self.n_slots = settings.n_slots
        self.n_open = 0
        """Requests that llama.cpp works on or holds back."""
        self._names = names
        self._child = child
        self._upstream = Upstream(settings.socket)

    async def close(self) -> None:
        """Drop the connections to llama.cpp."""
        await self._upstream.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or the server's lifespan."""
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._answer(scope, receive, noted)
        except QuantileError as error:
            if started:
                raise
            if isinstance(error, EngineError):
                await self._until_noticed()
            await _send_error(send, error)

    async def _until_noticed(self) -> None:
        """A process that is killed closes its socket a moment before its end is told here. Who
        looks at `alive` to see whether the error is one of a dead engine must not look too soon.
        """
        for _ in range(_NOTICE_STEPS):
            if not self._child.alive:
                return
            await asyncio.sleep(_NOTICE_STEP_S)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path not in _GET | _POST:
            raise UnknownPathError(f"there is no {path} here")
        need = "GET" if path in _GET else "POST"
        if scope["method"] != need:
            raise MethodNotAllowedError(f"{path} takes {need}, have {scope['method']}")
        if not self._child.alive:
            raise EngineError("llama.cpp's process has ended")
        if path == "/health":
            await respond(send, 200, b"")
        elif path == "/v1/models":
            await _send_json(send, self._models())
        elif path == "/metrics":
            await until_disconnect(self._upstream.relay(send, "GET", path, None), receive)
        else:
            raw = await read_body(receive)
            if raw is not None:
                await until_disconnect(self._post(path, _decoded(raw), raw, send), receive)

    async def _post(self, path: str, body: Body, raw: bytes, send: Send) -> None:
        self._require_model(body)
        if path == "/tokenize":
            await _send_json(send, await self._tokenize(body))
        elif path == "/detokenize":
            answer = await self._upstream.ask("/detokenize", {"tokens": body.get("tokens")})
            await _send_json(send, {"prompt": answer["content"]})
        else:
            self.n_open += 1
            try:
                if path == "/v1/completions":
                    await self._complete(body, raw, send)
                else:
                    await self._upstream.relay(send, "POST", path, raw)
            finally:
                self.n_open -= 1

    async def _complete(self, body: Body, raw: bytes, send: Send) -> None:
        if body.get("prompt_logprobs") is not None:
            raise MalformedRequestError("prompt_logprobs is vLLM's: set `echo` and `logprobs`")
        if body.get("echo"):
            await _send_json(send, await echoed(body, self._names[0], self._child.ask))
            return
        if body.get("max_tokens") is None:  # llama.cpp would write until the context is full
            raw = msgspec.json.encode(body | {"max_tokens": DEFAULT_MAX_TOKENS})
        await self._upstream.relay(send, "POST", "/v1/completions", raw)

    async def _tokenize(self, body: Body) -> Body:
        """As vLLM: `prompt`, or `messages` by the chat template."""
        text = body.get("prompt")
        if "messages" in body:
            wanted: Body = {key: body[key] for key in ("messages", "tools") if key in body}
            text = (await self._upstream.ask("/apply-template", wanted))["prompt"]
        if not isinstance(text, str):
            raise MalformedRequestError("/tokenize needs `prompt` (a string) or `messages`")
        special = bool(body.get("add_special_tokens", "messages" not in body))
        pieces = bool(body.get("return_token_strs"))
        asked: Body = {"content": text, "add_special": special, "parse_special": True}
        answer = await self._upstream.ask("/tokenize", asked | {"with_pieces": pieces})
        entries = answer["tokens"]
        tokens = [entry["id"] for entry in entries] if pieces else entries
        texts = [_piece(entry["piece"]) for entry in entries] if pieces else None
        return {
            "count": len(tokens),
            "max_model_len": self.context_length,
            "tokens": tokens,
            "token_strs": texts,
        }

    def _require_model(self, body: Body) -> None:
        model = body.get("model")
        if model is not None and model not in self._names:
            raise UnknownModelError(
                f"the model {model!r} does not exist; have {', '.join(self._names)}"
            )

    def _models(self) -> Body:
        cards = [
            {
                "id": name,
                "object": "model",
                "created": _CREATED,
                "owned_by": "llama.cpp",
                "root": self._names[0],
                "parent": None,
                "max_model_len": self.context_length,
            }
            for name in self._names
        ]
        return {"object": "list", "data": cards}


def _piece(piece: str | list[int]) -> str:
    """llama.cpp gives the bytes of a token that is not text."""
    return piece if isinstance(piece, str) else bytes(piece).decode(errors="replace")


def _decoded(raw: bytes) -> Body:
    try:
        return msgspec.json.decode(raw, type=Body)
    except msgspec.DecodeError as error:
        raise MalformedRequestError(f"the body is not a JSON object: {error}") from None


async def _send_json(send: Send, content: Body, status: int = 200) -> None:
    await respond(send, status, msgspec.json.encode(content))


async def _send_error(send: Send, error: QuantileError) -> None:
    kind = "invalid_request_error" if isinstance(error, CallerError) else "server_error"
    content = {"message": str(error), "type": kind, "param": None, "code": error.http_status}
    await _send_json(send, {"error": content}, error.http_status)
