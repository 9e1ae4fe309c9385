"""One structured line per request: who served it and why, how long it took, never what it said.

Lines go to Serve's own logger, whose JSON encoding (`logging_config: {encoding: JSON}`) writes the
fields as keys, with the application, the replica and the time beside them.
"""

import logging
from typing import Any

from serve_app.domain.errors import QuantileError
from serve_app.domain.observation import Observation

MESSAGE = "request"
logger = logging.getLogger("ray.serve")


def log_answer(request_id: str, tenant: str, model: str, reason: str, seen: Observation) -> None:
    """A request that a variant answered."""
    fields: dict[str, Any] = {
        "request": request_id,
        "tenant": tenant,
        "model": model,
        "variant": seen.variant,
        "route_reason": reason,
        "status": seen.status,
        "ttft_ms": round(1000 * seen.ttft_s, 2),
        "duration_ms": round(1000 * seen.duration_s, 2),
        "prompt_tokens": seen.prompt_tokens,
        "completion_tokens": seen.completion_tokens,
        "whole": seen.whole,
    }
    logger.log(logging.INFO if seen.whole else logging.WARNING, MESSAGE, extra=fields)


def log_refusal(request_id: str | None, path: str, error: QuantileError) -> None:
    """A request that the router refused. The error's words may quote the request: left out."""
    fields = {
        "request": request_id,
        "path": path[:100],
        "variant": None,
        "route_reason": "rejected",
        "status": error.http_status,
        "code": error.code,
    }
    logger.info(MESSAGE, extra=fields)
