"""What is wrong with an answer of the router: pure, so that the judge itself can be tested."""

import inspect
import json
from collections.abc import Collection, Iterator

from serve_app.domain import errors
from serve_app.domain.traffic import RouteReason
from serve_app.serving.openapi import ERRORS, WITH_RETRY_AFTER
from tests.fakes.wire import Outcome, Reply, Talk

ROUTER = "none"
"""`x-variant` of what no variant answered."""
_OURS = {
    (each.http_status, each.code, each.kind)
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if issubclass(each, errors.QuantileError)
}
"""Status, code and type of every error that we raise on purpose."""
MAX_ERROR_BYTES = 4096
"""A refusal that repeats what it was sent would make the router an amplifier."""


def complaints(
    talk: Talk,
    outcome: Outcome,
    *,
    well_formed: bool,
    variants: Collection[str],
    cut: Collection[str],
) -> list[str]:
    """Everything that is wrong with how a conversation went.

    `well_formed`: it is HTTP, so the server has to hand it to the router; else the server may
    refuse it by itself, with a 4xx, and close. Answers of the variants in `cut` may break off.
    """
    found = [
        wrong for reply in outcome.replies for wrong in _of_reply(reply, well_formed, variants)
    ]
    if outcome.ending == "nonsense":
        found.append("what came back is no HTTP")
    if outcome.ending == "silent":
        found.append(f"no answer for too long, {len(outcome.replies)} begun")
    if len(outcome.replies) > talk.n_answers and well_formed:
        found.append(f"{len(outcome.replies)} answers to {talk.n_answers} requests")
    if talk.leaves or not well_formed:
        return found
    by_cut = any(reply.header("x-variant") in cut for reply in outcome.replies)
    if outcome.ending in ("closed", "reset") and not by_cut:
        n_whole = sum(reply.whole for reply in outcome.replies)
        found.append(f"{outcome.ending} after {n_whole} of {talk.n_answers} answers")
    return found


def _of_reply(reply: Reply, well_formed: bool, variants: Collection[str]) -> Iterator[str]:
    variant = reply.header("x-variant")
    if variant is None:
        servers_own = 400 <= reply.status < 500 and not well_formed
        if not servers_own:
            yield f"status {reply.status} without x-variant: {reply.body[:200]!r}"
        return
    if variant != ROUTER and variant not in variants:
        yield f"x-variant is {variant!r}"
    reason = reply.header("x-route-reason")
    if reason not in set(RouteReason):
        yield f"x-route-reason is {reason!r}"
    for name in ("x-variant", "x-route-reason", "content-length", "content-type"):
        if sum(key == name for key, _ in reply.headers) > 1:
            yield f"{name} comes twice"
    if variant == ROUTER and reply.status >= 400:
        yield from _of_refusal(reply)


def _of_refusal(reply: Reply) -> Iterator[str]:
    """The router's own: OpenAI-shaped, documented, short, never a 500."""
    if reply.status == 500 or reply.status not in ERRORS:
        yield f"the router's own {reply.status}: {reply.body[:200]!r}"
    retry_after = reply.header("retry-after")
    if retry_after is None:
        if reply.status in WITH_RETRY_AFTER:
            yield f"{reply.status} without retry-after"
    elif not retry_after.isdecimal() or int(retry_after) < 1:
        yield f"{reply.status} with retry-after {retry_after!r}"
    if len(reply.body) > MAX_ERROR_BYTES:
        yield f"a refusal of {len(reply.body)} bytes: {reply.body[:100]!r}"
    if not reply.whole or not reply.body:  # cut by the client's leaving, or asked by HEAD
        return
    if reply.header("content-type") != "application/json":
        yield f"an error of type {reply.header('content-type')}"
    yield from _of_shape(reply.status, reply.body)


def _of_shape(status: int, body: bytes) -> Iterator[str]:
    try:
        error = json.loads(body)["error"]
        kind, code, message = error["type"], error["code"], error["message"]
    except (ValueError, TypeError, KeyError):
        yield f"an error that is not OpenAI-shaped: {body[:200]!r}"
        return
    if set(error) != {"message", "type", "param", "code"}:
        yield f"an error with the fields {sorted(error)}"
    if (status, code, kind) not in _OURS:
        yield f"no error of ours: status {status}, code {code!r}, type {kind!r}"
    if not isinstance(message, str) or not message:
        yield f"an error without a message: {body[:200]!r}"
