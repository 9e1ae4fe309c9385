"""The ways from a router to its variants, scripted: implements `serve_app.serving.relay.Relay`."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, Self

from serve_app.domain.checkpoint import VariantCard
from serve_app.engines.engine import Scope
from serve_app.serving.http import CARD_PATH
from serve_app.serving.relay import Answer, VariantBusyError, VariantDownError
from serve_app.serving.upstream import Sink


def card_of(name: str, **changes: Any) -> VariantCard:
    """What a variant says of itself."""
    facts = {
        "name": name,
        "method": "gptq",
        "scheme": "gptq W4A16 g128",
        "bits": 4,
        "weight_bytes": 1000,
        "context_length": 2048,
        "engine": "fake",
    }
    return VariantCard(**{**facts, **changes})


class FakeAnswer:
    """Gives its pieces in order: bytes are read, an exception is raised, an event is waited for."""

    def __init__(
        self,
        *pieces: bytes | BaseException | asyncio.Event,
        status: int = 200,
        headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),),
    ) -> None:
        self.status = status
        self.headers = [(name.encode(), value.encode()) for name, value in headers]
        self.ended: list[str] = []
        self._pieces = list(pieces)

    held_back = False

    async def begun(self) -> None:
        while self._pieces and not isinstance(self._pieces[0], bytes):
            piece = self._pieces.pop(0)
            if isinstance(piece, BaseException):
                raise piece
            await piece.wait()

    async def read(self) -> bytes:
        while self._pieces:
            piece = self._pieces.pop(0)
            if isinstance(piece, bytes):
                return piece
            if isinstance(piece, BaseException):
                raise piece
            await piece.wait()
        return b""

    async def hand_on(self, sink: Sink) -> None:
        while piece := await self.read():
            if (taking := sink(piece)) is not None:
                await taking

    def release(self) -> None:
        assert not self._pieces, "released before it was read to its end"
        self.ended.append("released")

    def close(self) -> None:
        self.ended.append("closed")


class FakeRelay:
    """Answers from a script; `scripts[variant]` makes an answer, or raises, for each request.

    Probes for cards are answered from `cards` (a card, or what makes another answer) and kept
    apart: a variant without a card refuses.
    """

    def __init__(self, *variants: str) -> None:
        self.cards: dict[str, VariantCard | Callable[[], FakeAnswer]] = {
            name: card_of(name) for name in variants
        }
        self.scripts: dict[str, Callable[[], FakeAnswer]] = defaultdict(
            lambda: lambda: FakeAnswer(b'{"ok": true}')
        )
        self.asked: list[str] = []
        self.requests: list[tuple[Scope, bytes]] = []
        self.timeouts_s: list[float | None] = []
        self.answers: list[FakeAnswer] = []
        self.probe_answers: list[FakeAnswer] = []
        self.is_closed = False

    async def ask(
        self, variant: str, scope: Scope, body: bytes, timeout_s: float | None = None
    ) -> Answer:
        if scope["path"] == CARD_PATH:
            return await self._probe(variant)
        self.asked.append(variant)
        self.requests.append((scope, body))
        self.timeouts_s.append(timeout_s)
        await asyncio.sleep(0)
        answer = self.scripts[variant]()
        self.answers.append(answer)
        return answer

    async def _probe(self, variant: str) -> Answer:
        await asyncio.sleep(0)
        if variant not in self.cards:
            raise VariantDownError("no replica")
        card = self.cards[variant]
        if isinstance(card, VariantCard):
            answer = FakeAnswer(json.dumps(asdict(card)).encode())
        else:
            answer = card()
        self.probe_answers.append(answer)
        return answer

    def close(self) -> None:
        self.is_closed = True

    def leftovers(self) -> list[FakeAnswer]:
        """Answers that were neither released nor closed, or both: each is a leaked connection."""
        every = [*self.answers, *self.probe_answers]
        return [answer for answer in every if len(answer.ended) != 1]


def busy(reason: str = "it answered 503") -> Callable[[], FakeAnswer]:
    """A script that takes no request."""

    def refuse() -> FakeAnswer:
        raise VariantBusyError(reason)

    return refuse


class FakeSleepers:
    """Who sleeps, as the test says; None: it cannot be known."""

    def __init__(self, *asleep: str) -> None:
        self.asleep: frozenset[str] | None = frozenset(asleep)
        self.n_asked = 0

    async def names(self) -> frozenset[str] | None:
        self.n_asked += 1
        await asyncio.sleep(0)
        return self.asleep


def application(status: str, **replicas: int) -> SimpleNamespace:
    """What Serve's status says of an application with one deployment: replicas by state."""
    deployment = SimpleNamespace(status=status, replica_states=replicas)
    return SimpleNamespace(deployments={"VariantServer": deployment})


class FakeApplications:
    """What Serve's status says, as the test says; `ages` are the ages that were asked for."""

    def __init__(self, **applications: SimpleNamespace) -> None:
        self.applications: Mapping[str, Any] | None = applications
        self.ages: list[float] = []

    @classmethod
    def unknown(cls) -> Self:
        """Serve's controller does not answer."""
        fake = cls()
        fake.applications = None
        return fake

    async def known(self, max_age_s: float = 0.0) -> Mapping[str, Any] | None:
        self.ages.append(max_age_s)
        await asyncio.sleep(0)
        return self.applications
