"""Traffic through the alias, as in production: does each session reach the variant that owns it?

Which variant owns a session follows from the split alone, so this needs no statistics: every
answer is either right or wrong.
"""

import http.client
import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from serve_app.pipeline.findings import Split, SplitShare
from serve_app.routing.split import assign

WORKERS = 8
TIMEOUT_S = 60.0
SESSION = "quantile-pipeline-{}"


@dataclass(frozen=True)
class Answer:
    """What one request came to. `fault` is empty where it was answered."""

    session: str
    variant: str | None
    reason: str | None
    fault: str = ""


Ask = Callable[[str, str], Answer]
"""Send one prompt for one session."""


def check_split(
    ask: Ask, shares_bp: Mapping[str, int], n_requests: int, prompts: Sequence[str]
) -> Split:
    """Send `n_requests`, each with a session of its own, and hold the answers against the split."""
    sessions = [SESSION.format(i) for i in range(n_requests)]
    with ThreadPoolExecutor(WORKERS) as pool:
        answers = list(
            pool.map(ask, sessions, (prompts[i % len(prompts)] for i in range(n_requests)))
        )
    return judge_answers(answers, shares_bp)


def judge_answers(answers: Sequence[Answer], shares_bp: Mapping[str, int]) -> Split:
    """What the answers say; pure."""
    owners = {each.session: assign(each.session, shares_bp) for each in answers}
    failed = [each for each in answers if each.fault]
    strays = [e for e in answers if not e.fault and e.variant != owners[e.session]]
    faults = [
        *(each.fault for each in failed),
        *(f"{e.session} is {owners[e.session]}'s, {e.variant} answered ({e.reason})"
          for e in strays),
    ]  # fmt: skip
    expected, served = Counter(owners.values()), Counter(e.variant for e in answers if not e.fault)
    return Split(
        n_requests=len(answers),
        n_failed=len(failed),
        n_misrouted=len(strays),
        shares=tuple(
            SplitShare(variant=name, share_bp=bp, expected=expected[name], served=served[name])
            for name, bp in shares_bp.items()
        ),
        reasons=dict(Counter(e.reason or "none" for e in answers if not e.fault)),
        first_fault=faults[0] if faults else "",
    )


def http_ask(base_url: str, model: str, max_tokens: int) -> Ask:
    """Ask a served endpoint through its alias."""

    def ask(session: str, prompt: str) -> Answer:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        request = urllib.request.Request(  # noqa: S310 - our own loopback URL
            f"{base_url}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json", "x-session-id": session},
        )
        try:
            return _answer(session, request)
        except (OSError, http.client.HTTPException) as error:  # a cut body is of the second kind
            return Answer(session, None, None, str(error) or type(error).__name__)

    return ask


def _answer(session: str, request: urllib.request.Request) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            answer.read()
            headers = answer.headers
    except urllib.error.HTTPError as error:
        return Answer(session, None, None, f"HTTP {error.code}: {error.read()[:200]!r}")
    return Answer(session, headers.get("x-variant"), headers.get("x-route-reason"))
