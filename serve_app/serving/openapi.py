"""The router's OpenAPI document, served at `/openapi.json`: its paths, marks and errors.

It promises what the router itself keeps. A relayed body is passed on unread but for `model` and
`user`, so its other fields are listed as the engines document them and bounded by nothing here;
what a variant answers is vLLM's to describe. `tests/contract/test_openapi.py` holds the document
against the code, `tests/contract/test_fuzz.py` against the answers.
"""

from collections.abc import Mapping
from typing import Any

from serve_app.domain.traffic import RouteReason
from serve_app.serving.http import MAX_TIMEOUT_MS

Json = dict[str, Any]

OPENAPI_PATH = "/openapi.json"

ERRORS: Mapping[int, str] = {
    400: "The request's body is not what the path takes.",
    401: "The API key is missing or not known here.",
    403: "The API key may not ask this.",
    404: "No such path, model or variant.",
    405: "The path exists, but not for this method.",
    408: "The body came too slowly.",
    413: "The body is larger than the router takes.",
    429: "A limit of the API key or of the router is reached; `Retry-After` where it is known.",
    431: "The headers are larger, or more, than the router takes.",
    500: "The router failed on this request; its log says why.",
    503: "No variant can take the request now: retry after `Retry-After` seconds.",
    504: "The deadline that the request named has passed.",
}
"""Every status with which the router itself refuses a request."""

WITH_RETRY_AFTER = frozenset({503})
"""Those that always say after how many seconds; others say it where it is known."""

_TEXT: Json = {"type": "string"}
_FLAG: Json = {"type": ["boolean", "null"]}
_COUNT: Json = {"type": ["integer", "null"]}
_NUMBER: Json = {"type": ["number", "null"]}
_GENERATION: Json = {
    "stream": _FLAG,
    "n": _COUNT,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "seed": _COUNT,
}
_CHAT: Json = {
    "messages": {"type": "array", "items": {"type": "object"}},
    "max_completion_tokens": _COUNT,
    "max_tokens": _COUNT,
    "stop": {"type": ["string", "array", "null"], "items": _TEXT},
    "stream_options": {"type": ["object", "null"]},
    **_GENERATION,
}
_PROMPT: Json = {"type": ["string", "array"]}

RELAYED: Mapping[str, tuple[str, Json]] = {
    "/v1/chat/completions": ("Answer a conversation", _CHAT),
    "/v1/completions": (
        "Continue a prompt",
        {"prompt": _PROMPT, "max_tokens": _COUNT, "echo": _FLAG, **_GENERATION},
    ),
    "/v1/responses": (
        "Answer an input, as OpenAI's Responses API",
        {"input": _PROMPT, "max_output_tokens": _COUNT, **_GENERATION},
    ),
    "/v1/embeddings": ("Embed an input", {"input": _PROMPT, "encoding_format": _TEXT}),
    "/tokenize": ("Text to tokens", {"prompt": _TEXT, "messages": {"type": "array"}}),
    "/detokenize": (
        "Tokens to text",
        {"tokens": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
    ),
}
"""Paths that a variant answers: what they do, and the fields that engines read there."""


def openapi_document() -> Json:
    """The document as plain data; it is the same for every model that is served."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "QuanTile router",
            "version": "1",
            "description": "OpenAI's API over the quantized variants of a model: the split decides "
            "which of them answers, `<model>@<variant>` pins one.",
        },
        "paths": {
            **{path: {"post": _relayed(path)} for path in RELAYED},
            "/v1/models": {"get": _local("The models and variants that can be named", "Models")},
            "/v1/models/{model}": {"get": _model()},
            "/status": {"get": _local("Each variant's replicas, share and engine facts")},
            "/healthz": {"get": _local("The router is alive")},
            "/readyz": {
                "get": _local("Every variant with a share is ready, or asleep", refusals=(503,))
            },
            OPENAPI_PATH: {"get": _local("This document")},
        },
        "security": [{}, {"key": []}],
        "components": {
            "schemas": _schemas(),
            "headers": _headers(),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, where the router has a file of them.",
                }
            },
        },
    }


def _relayed(path: str) -> Json:
    summary, fields = RELAYED[path]
    body = {
        "type": "object",
        "required": ["model"],
        "properties": {
            "model": {"type": "string", "description": "An alias, or `<alias>@<variant>`."},
            "user": {"type": ["string", "null"], "description": "The session, without a header."},
            **fields,
        },
    }
    parameters = [
        _parameter("x-session-id", "One session stays on one variant."),
        _parameter("x-request-id", "Decides where there is no session."),
        _parameter(
            "x-request-timeout-ms",
            "The longest that the request may take, to the last byte of its answer.",
            {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
        ),
    ]
    answer = {
        "description": "The variant's answer: JSON, or server-sent events where `stream` is true. "
        "A stream that breaks off ends in an event with an `error`.",
        "headers": _marks(),
        "content": {"application/json": {}, "text/event-stream": {}},
    }
    return {
        "summary": summary,
        "operationId": path.strip("/").replace("/", "_"),
        "parameters": parameters,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": answer, **_refusals(ERRORS), "default": _error("The variant's own.")},
    }


def _local(summary: str, schema: str | None = None, refusals: tuple[int, ...] = ()) -> Json:
    content: Json = {"type": "object"} if schema is None else _ref("schemas", schema)
    answer = {
        "description": summary,
        "headers": _marks(),
        "content": {"application/json": {"schema": content}},
    }
    return {"summary": summary, "responses": {"200": answer, **_refusals((*refusals, *_ANYWHERE))}}


_ANYWHERE = (401, 403, 405, 429, 431, 500, 503)
"""Refusals that do not depend on the path."""


def _model() -> Json:
    operation = _local("One model or variant", "Model", (404,))
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    return operation | {"parameters": [name]}


def _parameter(name: str, description: str, schema: Json = _TEXT) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _refusals(statuses: Any) -> Json:
    return {str(status): _error(ERRORS[status], status) for status in sorted(set(statuses))}


def _error(description: str, status: int | None = None) -> Json:
    headers = _marks()
    if status in WITH_RETRY_AFTER:
        headers["Retry-After"] = _ref("headers", "RetryAfter")
    content = {"application/json": {"schema": _ref("schemas", "Error")}}
    return {"description": description, "headers": headers, "content": content}


def _marks() -> Json:
    return {
        "x-variant": _ref("headers", "Variant"),
        "x-route-reason": _ref("headers", "RouteReason"),
    }


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _headers() -> Json:
    return {
        "Variant": {
            "description": "The variant that answered; `none` where the router did.",
            "required": True,
            "schema": _TEXT,
        },
        "RouteReason": {
            "description": "Why it did.",
            "required": True,
            "schema": {"type": "string", "enum": [str(reason) for reason in RouteReason]},
        },
        "RetryAfter": {
            "description": "Seconds.",
            "required": True,
            "schema": {"type": "integer", "minimum": 0},
        },
    }


def _schemas() -> Json:
    error = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {
            "message": _TEXT,
            "type": _TEXT,
            "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "integer", "null"]},
        },
    }
    model = {
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": _TEXT,
        },
    }
    models = {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": _ref("schemas", "Model")},
        },
    }
    wrapped = {"type": "object", "required": ["error"], "properties": {"error": error}}
    return {"Error": wrapped, "Model": model, "Models": models}
