"""The gate before a run: all replicas of all variants, or no load at all.

A variant with a replica less than it should have is slower for that reason alone.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from loadtests.campaign import Campaign
from loadtests.drive.sse import read_stream
from loadtests.observe.discover import context_lengths, pin
from loadtests.observe.target_api import TargetApi, decoded, why_not
from loadtests.plan.prompts import Message, chat_body
from loadtests.plan.words import make_text
from loadtests.records.manifest import VariantFacts
from serve_app.domain.errors import InvalidRunError

__all__ = ["context_lengths", "tokens_per_word", "wait_until_ready"]

POLL_S = 1.0
SAMPLE_WORDS = 512


class _Replicas(msgspec.Struct):
    running: int
    target: int | None


class _Variant(msgspec.Struct):
    ready: bool
    asleep: bool
    replicas: _Replicas | None = None
    facts: dict[str, str] | None = None


class _Status(msgspec.Struct):
    variants: dict[str, _Variant]


class _Tokens(msgspec.Struct):
    count: int


@dataclass(frozen=True)
class _Look:
    """What one look found of a variant: its facts once it is ready, else why it is not."""

    facts: VariantFacts | None = None
    lacks: str = ""


def wait_until_ready(campaign: Campaign, on_wait: Callable[[str], None]) -> dict[str, VariantFacts]:
    """Wait until every replica of every variant serves; what the target says of each variant.

    By the target's `GET /status`; a variant that sleeps is woken by a request. A target without
    one (a bare vLLM, another gateway) is ready when a request to each variant succeeds, and does
    not tell its replicas. `on_wait` is told what is missing, at every look. Raises InvalidRunError
    after `target.ready_timeout_s`.
    """
    limit_s = campaign.target.ready_timeout_s
    deadline_s = time.monotonic() + limit_s
    with TargetApi(campaign.target) as api:
        gate = _Gate(campaign, api, deadline_s)
        while True:
            looks = gate.look()
            facts = {name: look.facts for name, look in looks.items() if look.facts is not None}
            if len(facts) == len(looks):
                return facts
            lacking = _lacking(looks)
            if time.monotonic() + POLL_S > deadline_s:
                raise InvalidRunError(
                    f"{campaign.target.base_url}: need all replicas of all variants, within "
                    f"{limit_s:g} s have {lacking}. See the replicas' logs, or raise "
                    "target.ready_timeout_s"
                )
            on_wait(f"waiting for {lacking}")
            time.sleep(POLL_S)


def tokens_per_word(campaign: Campaign, text: str | None = None) -> float | None:
    """Tokens per word of `text` (by default, made text) by the target's own count.

    None where it has no `POST /tokenize`.
    """
    text = text or make_text(campaign.seed, SAMPLE_WORDS)
    body = {
        "model": pin(campaign, campaign.variant_names()[0]),
        "prompt": text,
        "add_special_tokens": False,
    }
    with TargetApi(campaign.target) as api:
        answer = decoded(api.post("/tokenize", msgspec.json.encode(body)), _Tokens)
    return answer.count / len(text.split()) if answer and answer.count > 0 else None


class _Gate:
    """Looks at all variants of a campaign."""

    def __init__(self, campaign: Campaign, api: TargetApi, deadline_s: float) -> None:
        self._campaign = campaign
        self._api = api
        self._deadline_s = deadline_s
        self._answered: set[str] = set()

    def look(self) -> dict[str, _Look]:
        """Each variant, now."""
        exchange = self._api.get("/status")
        status = decoded(exchange, _Status)
        names = self._campaign.variant_names()
        if status is not None:
            return {name: self._by_status(name, status.variants.get(name)) for name in names}
        if exchange.error is None and exchange.status is not None and exchange.status < 500:
            return {name: self._by_request(name) for name in names}
        return dict.fromkeys(names, _Look(lacks=f"unknown ({why_not(exchange)})"))

    def _by_status(self, name: str, variant: _Variant | None) -> _Look:
        if variant is None:
            return _Look(lacks="missing in /status")
        if variant.asleep:
            failure = self._ask(name)
            return _Look(lacks=failure or "awake, its replicas not counted yet")
        replicas = variant.replicas
        if replicas is None:
            return _Look(lacks="an unknown number of replicas")
        is_up = variant.ready and variant.facts is not None
        if replicas.running < 1 or replicas.running != replicas.target or not is_up:
            wanted = "?" if replicas.target is None else replicas.target
            state = "" if is_up else ", not ready"
            return _Look(lacks=f"{replicas.running} of {wanted} replicas{state}")
        return _Look(VariantFacts(replicas=replicas.running, facts=variant.facts or {}))

    def _by_request(self, name: str) -> _Look:
        if name not in self._answered:
            failure = self._ask(name)
            if failure is not None:
                return _Look(lacks=failure)
            self._answered.add(name)
        return _Look(VariantFacts())

    def _ask(self, name: str) -> str | None:
        """Send the variant one tiny streamed request; why it failed, or None."""
        campaign = self._campaign
        hello: Message = {"role": "user", "content": "hi"}
        body = chat_body(campaign.workload, pin(campaign, name), [hello], 1)
        left_s = max(self._deadline_s - time.monotonic(), POLL_S)
        exchange = self._api.post("/v1/chat/completions", body, left_s)
        if exchange.error is not None or exchange.status != 200:
            return f"no answer ({why_not(exchange)})"
        served = exchange.headers.get("x-variant", name)
        if served != name:
            return f"an answer of {served}"
        return None if read_stream(exchange.pieces).is_complete else "an answer cut short"


def _lacking(looks: Mapping[str, _Look]) -> str:
    return "; ".join(f"{name}: {look.lacks}" for name, look in looks.items() if look.facts is None)
