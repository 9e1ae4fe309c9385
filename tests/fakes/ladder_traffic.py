"""Open-loop traffic of questions through a running router, and where its ladder stands meanwhile.

Requests leave when the plan says, whatever became of those before; their TTFT counts from when they
were due. What comes back is what a simulation would have given (`simulate.run.Played`), so that its
figures and its picture are those of a simulation.
"""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp

from serve_app.reference.corpus import Fact
from serve_app.simulate.engine import Job
from serve_app.simulate.run import Arrival, Played
from serve_app.simulate.trace import Stage, Tokens, draw
from tests.fakes.drill import CHAT, Fate, Sent, exchange

EVERY_S = 0.5
"""How often the ladder is looked at; it moves every two seconds at most."""
LIMIT_S = 180.0
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Plan:
    """Poisson arrivals at a rate per phase, with a question each; the same seed, the same plan."""

    phases: tuple[tuple[str, Stage], ...]
    arrivals: tuple[Arrival, ...]
    questions: tuple[Fact, ...]
    """Asked in turn."""

    @classmethod
    def drawn(
        cls,
        phases: Sequence[tuple[str, float, float]],
        tokens: Tokens,
        questions: Sequence[Fact],
        seed: int,
    ) -> "Plan":
        """`phases`: name, requests per second, seconds."""
        stages = tuple((name, Stage(rate, rate, length_s)) for name, rate, length_s in phases)
        arrivals = draw([stage for _, stage in stages], tokens, seed)
        return cls(stages, arrivals, tuple(questions))

    @property
    def length_s(self) -> float:
        return sum(stage.length_s for _, stage in self.phases)

    def phase_at(self, at_s: float) -> str:
        """The phase of a second of the plan; what is later belongs to the last."""
        ends_s = itertools.accumulate(stage.length_s for _, stage in self.phases)
        names = (name for name, _ in self.phases)
        found = (name for name, end_s in zip(names, ends_s, strict=True) if at_s < end_s)
        return next(found, self.phases[-1][0])

    def fact(self, number: int) -> Fact:
        return self.questions[number % len(self.questions)]


@dataclass(frozen=True)
class Live:
    """What became of a plan on real engines."""

    sent: tuple[Sent, ...]
    """By their arrival."""
    played: Played
    """The same for the tools of the simulation; only what was answered whole and right."""
    reasons: tuple[tuple[float, str], ...]
    """(second, the ladder's reason), whenever it changed; none without a ladder."""

    @property
    def wrong(self) -> list[str]:
        """What is not whole and right."""
        return [
            f"{each.phase}, by {each.variant} ({each.reason}): {each.detail}"
            for each in self.sent
            if each.fate is not Fate.OK
        ]


async def play(base_url: str, model: str, plan: Plan) -> Live:
    """Send the plan; returns when the last answer has ended."""
    start_s = time.monotonic()
    views: list[tuple[float, dict[str, Any]]] = []
    sent = [
        Sent(plan.phase_at(each.at_s), start_s + each.at_s, streams=True) for each in plan.arrivals
    ]
    async with _session() as session:
        watch = asyncio.create_task(_watch(session, base_url, model, start_s, views))
        try:
            async with asyncio.TaskGroup() as group:
                for number, each in enumerate(sent):
                    await asyncio.sleep(max(0.0, each.sent_s - time.monotonic()))
                    tokens, fact = plan.arrivals[number].tokens, plan.fact(number)
                    group.create_task(_ask(session, base_url, model, fact, tokens, each))
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
    return Live(tuple(sent), _played(plan, sent, start_s, views), tuple(_changes(views, "reason")))


async def carried_per_s(
    base_url: str,
    model: str,
    questions: Sequence[Fact],
    tokens: Tokens,
    *,
    n_clients: int,
    warmup_s: float,
    length_s: float,
) -> float:
    """Answers per second of a closed loop of `n_clients`, counted over `length_s`."""
    rng = random.Random(1)
    facts = itertools.cycle(questions)
    ended: list[Sent] = []
    begin_s = time.monotonic() + warmup_s
    end_s = begin_s + length_s

    async def client(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < end_s:
            sent = Sent("capacity", time.monotonic(), streams=True)
            n_tokens = rng.randint(tokens.least, tokens.most)
            await _ask(session, base_url, model, next(facts), n_tokens, sent)
            assert sent.fate is Fate.OK, sent.detail
            ended.append(sent)

    async with _session() as session, asyncio.TaskGroup() as group:
        for _ in range(n_clients):
            group.create_task(client(session))
    return sum(begin_s <= each.end_s < end_s for each in ended) / length_s


def verdict(status: int, body: bytes, fact: Fact, n_tokens: int) -> tuple[Fate, str]:
    """Whether a stream is whole (all its tokens, and its end) and begins with the right answer."""
    if status != 200 or not body.endswith(_DONE):
        return Fate.FAILED, f"status {status}, ends in {body[-200:]!r}"
    events = [json.loads(line[6:]) for line in body.split(b"\n\n")[:-2] if line]
    deltas = (choice["delta"] for event in events for choice in event["choices"])
    text = "".join(delta.get("content") or "" for delta in deltas)
    told = [event["usage"]["completion_tokens"] for event in events if event.get("usage")]
    if not told or told[-1] != n_tokens:
        return Fate.FAILED, f"usage says {told[-1:]} of {n_tokens} tokens: {text!r}"
    if not text.startswith(fact.answer):
        return Fate.FAILED, f"{fact.question} {text!r}"
    return Fate.OK, ""


async def _ask(
    session: aiohttp.ClientSession,
    base_url: str,
    model: str,
    fact: Fact,
    n_tokens: int,
    sent: Sent,
) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": fact.question}],
        "max_tokens": n_tokens,
        "min_tokens": n_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    judge = partial(verdict, fact=fact, n_tokens=n_tokens)
    sent.fate, sent.detail = await exchange(session, base_url + CHAT, body, sent, judge)


async def _watch(
    session: aiohttp.ClientSession,
    base_url: str,
    model: str,
    start_s: float,
    views: list[tuple[float, dict[str, Any]]],
) -> None:
    while True:
        async with session.get(f"{base_url}/status") as answer:
            view = (await answer.json())["aliases"][model]["ladder"]
        if view is not None:
            views.append((time.monotonic() - start_s, view))
        await asyncio.sleep(EVERY_S)


def _played(
    plan: Plan, sent: Sequence[Sent], start_s: float, views: Sequence[tuple[float, dict[str, Any]]]
) -> Played:
    jobs = [
        Job(
            index=index,
            arrived_s=planned.at_s,
            tokens=planned.tokens,
            variant=each.variant,
            first_s=each.first_s - start_s,
            end_s=each.end_s - start_s,
        )
        for index, (planned, each) in enumerate(zip(plan.arrivals, sent, strict=True))
        if each.fate is Fate.OK and each.variant is not None and each.first_s is not None
    ]
    shares = [
        (at_s, {name: float(rung["share_bp"]) for name, rung in view["rungs"].items()})
        for at_s, view in views
    ]
    return Played(tuple(jobs), tuple(shares))


def _changes(
    views: Iterable[tuple[float, dict[str, Any]]], key: str
) -> Iterable[tuple[float, str]]:
    last = None
    for at_s, view in views:
        if view[key] != last:
            yield at_s, view[key]
        last = view[key]


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=LIMIT_S)
    )
