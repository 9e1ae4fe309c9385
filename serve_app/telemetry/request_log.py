"""One structured line per request: who served it and why, how long it took, never what it said.

Lines go to Serve's own logger, whose JSON encoding (`logging_config: {encoding: JSON}`) writes the
fields as keys, with the application, the replica and the time beside them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.domain.errors import QuantileError
from serve_app.domain.observation import Observation

MESSAGE = "request"
_TO_FILE = {"log_to_stderr": False}
"""Serve would also write the message to standard error, as text, without its fields."""
logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that a variant answered, whole or not."""

    request_id: str
    tenant: str
    model: str
    reason: str
    seen: Observation
    ending: str
    """How the answer ended."""
    is_fault: bool
    """By a fault of the variant's."""
    failed: Sequence[str] = ()
    """The variants that were asked before and did not take it, with what each said."""
    trace_id: str | None = None
    """In hexadecimal; None: it is not traced."""


def log_answer(answered: Answered) -> None:
    """One line. That of a variant's fault is an error, which Serve writes at once, with all lines
    that it holds back until they are a thousand (`RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE`)."""
    seen = answered.seen
    fields: dict[str, Any] = {
        "request": answered.request_id,
        "tenant": answered.tenant,
        "model": answered.model,
        "variant": seen.variant,
        "route_reason": answered.reason,
        "status": seen.status,
        "ttft_ms": None if seen.ttft_s is None else round(1000 * seen.ttft_s, 2),
        "duration_ms": round(1000 * seen.duration_s, 2),
        "prompt_tokens": seen.prompt_tokens,
        "completion_tokens": seen.completion_tokens,
        "whole": seen.whole,
        "ending": answered.ending,
        "failed_attempts": list(answered.failed),
        "trace": answered.trace_id,
        **_TO_FILE,
    }
    level = logging.INFO if seen.whole else logging.WARNING
    logger.log(logging.ERROR if answered.is_fault else level, MESSAGE, extra=fields)


def log_refusal(request_id: str | None, path: str, error: QuantileError) -> None:
    """A request that the router refused. The error's words may quote the request: left out."""
    fields = {
        "request": request_id,
        "path": path[:100],
        "variant": None,
        "route_reason": "rejected",
        "status": error.http_status,
        "code": error.code,
        **_TO_FILE,
    }
    logger.info(MESSAGE, extra=fields)
