"""`/v1/responses` of the fake engine: the Responses API's object and its event stream."""

from typing import Any

import msgspec

from serve_app.engines.fake_wire import Answer, token_text


def response_object(answer: Answer, status: str, text: str | None) -> dict[str, Any]:
    """The `response` object; `text` is None while nothing has been generated."""
    n_tokens = answer.n_tokens
    usage = {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": n_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.prompt_tokens + n_tokens,
    }
    return {
        "id": answer.request_id,
        "created_at": answer.created,
        "object": "response",
        "model": answer.model,
        "status": status,
        "output": [] if text is None else [_item(answer, status, [_part(text)])],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "incomplete_details": ({"reason": "max_output_tokens"} if status == "incomplete" else None),
        "usage": None if text is None else usage,
    }


def response_body(answer: Answer) -> bytes:
    """The JSON body of a response that is not streamed."""
    return msgspec.json.encode(response_object(answer, _status(answer), answer.text()))


class ResponseEvents:
    """Events of one streamed response: named SSE events with sequence numbers, no `[DONE]`."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._item_id = f"msg_{answer.request_id}"
        self._sequence = 0

    def opening(self) -> tuple[bytes, ...]:
        """The four events before the first token."""
        created = response_object(self._answer, "in_progress", None)
        return (
            self._event("response.created", {"response": created}),
            self._event("response.in_progress", {"response": created}),
            self._event(
                "response.output_item.added",
                {"output_index": 0, "item": _item(self._answer, "in_progress", [])},
            ),
            self._event("response.content_part.added", self._place() | {"part": _part("")}),
        )

    def token(self, index: int) -> bytes:
        """The event of token `index` (from 0)."""
        text = token_text(self._answer.seed, index)
        delta = self._place() | {"delta": text, "logprobs": []}
        return self._event("response.output_text.delta", delta)

    def closing(self) -> tuple[bytes, ...]:
        """The four events after the last token."""
        text, status = self._answer.text(), _status(self._answer)
        done = response_object(self._answer, status, text)
        item = _item(self._answer, status, [_part(text)])
        return (
            self._event(
                "response.output_text.done", self._place() | {"text": text, "logprobs": []}
            ),
            self._event("response.content_part.done", self._place() | {"part": _part(text)}),
            self._event("response.output_item.done", {"output_index": 0, "item": item}),
            self._event(f"response.{status}", {"response": done}),
        )

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        data = {"type": kind, "sequence_number": self._sequence} | fields
        self._sequence += 1
        return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


def _status(answer: Answer) -> str:
    return "incomplete" if answer.finish_reason == "length" else "completed"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": None}


def _item(answer: Answer, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{answer.request_id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }
