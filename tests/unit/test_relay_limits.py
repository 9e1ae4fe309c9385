"""An answer's bytes on their way to the client: limits, endings, and what the client sees."""

import asyncio
import json

import pytest

from serve_app.domain.traffic import RouteReason
from serve_app.serving.limits import AnswerLimits, Ending
from serve_app.serving.passing import AnswerCutError, pass_on
from serve_app.serving.upstream import UpstreamTruncatedError
from tests.fakes.asgi import Exchange
from tests.fakes.relay import FakeAnswer

SSE = (("content-type", "text/event-stream"),)
EVENT = b'data: {"id": 1}\n\n'
CODES = {
    Ending.BROKE_OFF: "stream_broken",
    Ending.SILENT: "stream_idle",
    Ending.DEADLINE: "deadline_exceeded",
    Ending.STOPPED: "router_stopping",
}


class Passing:
    """One answer, passed on to a client in process."""

    def __init__(self, *pieces, headers=SSE, idle_s=None, left_s=None) -> None:
        self.limits = AnswerLimits()
        self.limits.idle_s = idle_s
        self.answer = FakeAnswer(*pieces, headers=headers)
        self.client = Exchange(None, "POST", "/v1/completions")
        self.seen: list[bytes] = []
        self._left_s = left_s

    async def __call__(self) -> Ending:
        limit = self.limits.begin(self._left_s)
        return await pass_on(
            self.answer, self.client.send, "a", RouteReason.STICKY, self.seen.append, limit
        )

    def error(self) -> dict:
        """The error event that ends the stream, after its whole events."""
        *events, last, end = self.client.body.split(b"\n\n")
        assert self.client.over and end == b""
        for event in events:
            json.loads(event.removeprefix(b"data: "))
        return json.loads(last.removeprefix(b"data: "))["error"]


def never() -> asyncio.Event:
    return asyncio.Event()


async def test_whole_it_ends_without_a_word():
    passing = Passing(EVENT, b"data: [DO", b"NE]\n\n", b"rest")
    assert await passing() is Ending.WHOLE
    assert passing.client.body == EVENT + b"data: [DONE]\n\nrest"
    assert passing.seen == [EVENT, b"data: [DONE]\n\n"]
    assert passing.client.over


@pytest.mark.parametrize(
    ("pieces", "limits", "ending"),
    [
        ([UpstreamTruncatedError("gone")], {}, Ending.BROKE_OFF),
        ([b'data: {"id', UpstreamTruncatedError("gone")], {}, Ending.BROKE_OFF),
        ([b'data: {"id', never()], {"idle_s": 0.02}, Ending.SILENT),
        ([never()], {"left_s": 0.02}, Ending.DEADLINE),
        ([never()], {"left_s": -1.0}, Ending.DEADLINE),
        ([never()], {"left_s": 0.02, "idle_s": 0.3}, Ending.DEADLINE),
        ([never()], {"left_s": 9.0, "idle_s": 0.02}, Ending.SILENT),
    ],
)
async def test_a_stream_that_ends_too_early_ends_in_an_error_event(pieces, limits, ending):
    passing = Passing(EVENT, *pieces, **limits)
    assert await passing() is ending
    error = passing.error()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == CODES[ending] and "'a'" in error["message"]
    assert "again" in error["message"]


@pytest.mark.parametrize(
    ("last", "limits", "ending"),
    [
        (UpstreamTruncatedError("gone"), {}, Ending.BROKE_OFF),
        (never(), {"idle_s": 0.02}, Ending.SILENT),
        (never(), {"left_s": 0.02}, Ending.DEADLINE),
    ],
)
async def test_any_other_answer_is_cut(last, limits, ending):
    passing = Passing(b'{"half": ', last, headers=(("content-type", "application/json"),), **limits)
    with pytest.raises(AnswerCutError) as caught:
        await passing()
    assert caught.value.ending is ending
    assert not passing.client.over


class Slow(FakeAnswer):
    """Gives a piece every so often, for ever."""

    def __init__(self, gap_s: float, n_pieces: int) -> None:
        super().__init__(headers=SSE)
        self._gap_s, self._left = gap_s, n_pieces

    async def read(self) -> bytes:
        if not self._left:
            return b""
        self._left -= 1
        await asyncio.sleep(self._gap_s)
        return EVENT


async def test_idle_is_counted_between_pieces_and_not_in_all():
    passing = Passing(idle_s=0.4)
    passing.answer = Slow(0.05, 14)
    assert await passing() is Ending.WHOLE


async def test_half_events_are_signs_of_life_too():
    passing = Passing(idle_s=0.4)

    class Halves(Slow):
        async def read(self) -> bytes:
            return b"x" if await super().read() else b""

    passing.answer = Halves(0.05, 14)
    assert await passing() is Ending.WHOLE
    assert passing.client.body == b"x" * 14


async def test_a_slow_client_is_no_silence_of_its_variant():
    passing = Passing(EVENT, idle_s=0.02)
    gate, send = asyncio.Event(), passing.client.send

    async def slow(message):
        if message.get("body"):
            passing.answer.held_back = True
            await gate.wait()
            passing.answer.held_back = False
        await send(message)

    passing.client.send = slow
    task = asyncio.create_task(passing())
    await asyncio.sleep(0.2)
    assert not task.done()
    gate.set()
    assert await task is Ending.WHOLE


async def test_stopping_ends_every_answer_and_those_that_begin_later():
    limits = AnswerLimits()
    passings = [Passing(EVENT, never()) for _ in range(3)]
    for each in passings:
        each.limits = limits
    tasks = [asyncio.create_task(each()) for each in passings]
    done = Passing(EVENT)
    done.limits = limits
    assert await done() is Ending.WHOLE
    await asyncio.sleep(0.01)
    assert limits.stop() == 3
    assert await asyncio.gather(*tasks) == [Ending.STOPPED] * 3
    assert all(each.error()["code"] == "router_stopping" for each in passings)
    late = Passing(EVENT, never())
    late.limits = limits
    assert await late() is Ending.STOPPED
    assert limits.stop() == 0


async def test_a_client_that_leaves_is_a_cancellation_and_no_ending():
    passing = Passing(EVENT, never(), idle_s=5.0, left_s=5.0)
    task = asyncio.create_task(passing())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert passing.limits.stop() == 0


async def test_a_timeout_of_the_clients_side_is_not_taken_for_a_limit():
    passing = Passing(EVENT, idle_s=5.0)

    async def send(message):
        if message.get("body"):
            raise TimeoutError("the transport's")

    passing.client.send = send
    with pytest.raises(TimeoutError, match="transport"):
        await passing()
