"""What a client is told of its limits: errors and headers as OpenAI's API words them."""

import math

from serve_app.domain.errors import CallerError, QuotaError, RateLimitError
from serve_app.routing.admission import Account, Reason, Refusal
from serve_app.serving.http import Headers

_DO_NOT_RETRY = (b"x-should-retry", b"false")
"""OpenAI's clients retry any 429, unless the answer says this."""

_WHAT = {
    Reason.REQUEST_RATE: "requests per minute",
    Reason.TOKEN_RATE: "tokens per minute",
    Reason.TOKEN_QUOTA: "tokens per day",
}


def limit_error(tenant: str, refusal: Refusal) -> CallerError:
    """The 429 of a tenant's own limits."""
    need, have, limit = (f"{n:,.0f}" for n in (refusal.need, refusal.have, refusal.limit))
    error: CallerError
    if refusal.reason is Reason.TOO_LARGE:
        error = RateLimitError(
            f"this request may cost {need} tokens, {tenant} has a budget of {limit}: it can never "
            "be admitted; lower max_tokens or shorten the prompt"
        )
        error.kind = "tokens"
        error.response_headers = (_DO_NOT_RETRY,)
        return error
    what = _WHAT[refusal.reason]
    after = f"try again in {duration(refusal.retry_after_s or 0.0)}"
    if refusal.reason is Reason.REQUEST_RATE:
        error = RateLimitError(f"{tenant} has used up its {limit} {what}; {after}")
    elif refusal.reason is Reason.TOKEN_RATE:
        error = RateLimitError(
            f"{tenant} may use {limit} {what}, has {have} left, and this request may cost {need}; "
            f"{after}, or lower max_tokens"
        )
        error.kind = "tokens"
    else:
        error = QuotaError(
            f"{tenant} may use {limit} {what} (UTC), has {have} left, and this request may cost "
            f"{need}; {after}"
        )
        error.response_headers = (_DO_NOT_RETRY,)
    error.retry_after_s = refusal.retry_after_s
    return error


def busy_error(reason: Reason, tenant: str, limit: int | None, wait_s: float) -> CallerError:
    """The 429 of a request that found no place; `wait_s` is when there may be one."""
    if reason is Reason.TENANT_BUSY:
        what = f"{tenant} has {limit} requests under way, which is its limit"
    elif reason is Reason.QUEUE_FULL:
        what = "the router has no room left for requests that wait"
    else:
        what = "the router is full"
    error = RateLimitError(f"{what}; try again in {math.ceil(wait_s)} s")
    error.retry_after_s = wait_s
    return error


def limit_headers(account: Account, now_s: float) -> Headers:
    """`x-ratelimit-*` of what the tenant has left on this router replica."""
    headers: Headers = []
    for what, told in (
        (b"requests", account.requests_left(now_s)),
        (b"tokens", account.tokens_left(now_s)),
    ):
        if told is not None:
            limit, left, reset_s = told
            headers += [
                (b"x-ratelimit-limit-" + what, b"%d" % math.floor(limit)),
                (b"x-ratelimit-remaining-" + what, b"%d" % math.floor(left)),
                (b"x-ratelimit-reset-" + what, duration(reset_s).encode()),
            ]
    return headers


def duration(seconds: float) -> str:
    """As Go prints it, and so OpenAI: 0.02 -> `20ms`, 61 -> `1m1s`; rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    told = f"{rest}s"
    if hours or minutes:
        told = f"{minutes}m{told}"
    return f"{hours}h{told}" if hours else told
