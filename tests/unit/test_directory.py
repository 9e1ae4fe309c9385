"""What a probe's outcome means: ready, down, or nothing new."""

import asyncio
import itertools

import pytest

from serve_app.serving.directory import SILENT_PROBES, VariantDirectory
from serve_app.serving.relay import VariantBusyError, VariantDownError
from tests.fakes.relay import FakeAnswer, FakeRelay, card_of

INTERVAL_S = 0.001
TIMEOUT_S = 0.01


@pytest.fixture
async def relay():
    return FakeRelay("a")


@pytest.fixture
async def directory(relay):
    directory = VariantDirectory(relay, INTERVAL_S, timeout_s=TIMEOUT_S)
    directory.follow(["a"])
    await asyncio.sleep(0.02)
    assert directory.not_ready(["a"]) == []
    yield directory
    directory.close()


def raising(error: Exception):
    def answer() -> FakeAnswer:
        raise error

    return answer


async def test_down_is_known_at_the_next_probe_and_forgotten_when_it_is_back(relay, directory):
    relay.cards["a"] = raising(VariantDownError("no replica"))
    await asyncio.sleep(0.02)
    assert directory.known_down() == {"a"}
    relay.cards["a"] = card_of("a")
    await asyncio.sleep(0.02)
    assert directory.known_down() == set()


async def test_full_is_not_down(relay, directory):
    """Else overload of one variant would be pushed on to the next, and so on."""
    relay.cards["a"] = raising(VariantBusyError("its replicas are full"))
    await asyncio.sleep(0.05)
    assert directory.known_down() == set()
    assert directory.not_ready(["a"]) == []


async def test_slow_is_not_down_but_silence_is(relay, directory):
    silence = asyncio.Event()
    relay.cards["a"] = lambda: FakeAnswer(silence)
    await asyncio.sleep(TIMEOUT_S * (SILENT_PROBES - 1))
    assert directory.known_down() == set()
    await asyncio.sleep(TIMEOUT_S * SILENT_PROBES * 3)
    assert directory.known_down() == {"a"}
    silence.set()


async def test_an_answer_between_silences_starts_the_count_anew(relay, directory):
    for _ in range(3):
        relay.cards["a"] = lambda: FakeAnswer(asyncio.Event())
        await asyncio.sleep(TIMEOUT_S * (SILENT_PROBES - 1))
        relay.cards["a"] = card_of("a")
        await asyncio.sleep(TIMEOUT_S * 2)
        assert directory.known_down() == set()


async def test_full_between_silences_starts_the_count_anew(relay, directory):
    outcomes = itertools.cycle(
        [lambda: FakeAnswer(asyncio.Event()), raising(VariantBusyError("full"))]
    )
    relay.cards["a"] = lambda: next(outcomes)()
    await asyncio.sleep(TIMEOUT_S * 12)
    assert directory.known_down() == set()
