"""What a probe's outcome means: ready, down, or nothing new."""

import asyncio
import itertools
import json
import time
from collections import Counter
from dataclasses import asdict

import pytest

from serve_app.serving.directory import SILENT_PROBES, VariantDirectory
from serve_app.serving.relay import (
    IngressDownError,
    ReplicaLostError,
    VariantBusyError,
    VariantDownError,
)
from tests.fakes.relay import FakeAnswer, FakeRelay, FakeSleepers, card_of

INTERVAL_S = 0.001
TIMEOUT_S = 0.01


@pytest.fixture
async def relay():
    return FakeRelay("a")


@pytest.fixture
async def directory(relay):
    directory = VariantDirectory(relay, INTERVAL_S, FakeSleepers(), timeout_s=TIMEOUT_S)
    directory.follow(["a"])
    await asyncio.sleep(0.02)
    assert directory.not_ready(["a"]) == []
    yield directory
    directory.close()


def card_answer(name: str) -> FakeAnswer:
    return FakeAnswer(json.dumps(asdict(card_of(name))).encode())


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


async def test_the_end_of_one_replica_is_not_the_end_of_the_variant(relay, directory):
    """The second question of the same probe reaches another replica."""
    outcomes = itertools.cycle([raising(ReplicaLostError("lost")), lambda: card_answer("a")])
    relay.cards["a"] = lambda: next(outcomes)()
    for _ in range(20):
        await asyncio.sleep(0.001)
        assert directory.known_down() == set()
    relay.cards["a"] = raising(ReplicaLostError("lost"))
    await asyncio.sleep(0.05)
    assert directory.known_down() == {"a"}


async def test_an_ingress_that_starts_anew_takes_no_variant_down(relay, directory):
    outcomes = itertools.cycle(
        [raising(IngressDownError("refused"))] * (SILENT_PROBES - 1) + [lambda: card_answer("a")]
    )
    relay.cards["a"] = lambda: next(outcomes)()
    for _ in range(20):
        await asyncio.sleep(0.001)
        assert directory.known_down() == set()
    relay.cards["a"] = raising(IngressDownError("refused"))
    await asyncio.sleep(0.05)
    assert directory.known_down() == {"a"}


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


class TestSleepers:
    """Variants that may have no replica on purpose."""

    @pytest.fixture
    async def relay(self):
        relay = FakeRelay("a", "z")
        self.n_probes = Counter()
        fetch = relay._probe

        async def counted(name):
            self.n_probes[name] += 1
            return await fetch(name)

        relay._probe = counted
        return relay

    @pytest.fixture
    def sleepers(self):
        return FakeSleepers("z", "another application")

    @pytest.fixture
    async def directory(self, relay, sleepers):
        directory = VariantDirectory(relay, INTERVAL_S, sleepers, timeout_s=TIMEOUT_S)
        directory.follow(["a", "z"], ["z"])
        await asyncio.sleep(0.05)
        yield directory
        directory.close()
        await asyncio.sleep(0)

    async def test_asleep_is_not_probed_and_neither_down_nor_unready(self, relay, directory):
        assert self.n_probes.keys() == {"a"}
        assert directory.is_asleep("z")
        assert directory.known_down() == set()
        assert directory.not_ready(["a", "z"]) == []
        assert not directory.is_ready("z")

    async def test_awake_it_is_probed_like_others(self, relay, sleepers, directory):
        sleepers.asleep = frozenset()
        await asyncio.sleep(0.05)
        assert directory.is_ready("z") and not directory.is_asleep("z")
        relay.cards["z"] = raising(VariantDownError("no replica"))
        await asyncio.sleep(0.05)
        assert directory.known_down() == {"z"}

    async def test_going_to_sleep_forgets_that_it_was_ready_or_down(
        self, relay, sleepers, directory
    ):
        sleepers.asleep = frozenset()
        relay.cards["z"] = raising(VariantDownError("no replica"))
        await asyncio.sleep(0.05)
        sleepers.asleep = frozenset("z")
        await asyncio.sleep(0.05)
        assert directory.known_down() == set()

    async def test_an_answer_is_newer_than_what_serve_said_last(self, sleepers, directory):
        sleepers.asleep = None
        directory.has_woken("z")
        assert directory.is_ready("z") and not directory.is_asleep("z")
        assert directory.known_down() == set()

    async def test_while_nothing_can_be_known_what_was_known_stands(self, sleepers, directory):
        sleepers.asleep = None
        await asyncio.sleep(0.05)
        assert directory.is_asleep("z") and "z" not in self.n_probes

    async def test_before_the_first_answer_none_is_probed(self, relay, sleepers):
        sleepers.asleep = None
        directory = VariantDirectory(relay, INTERVAL_S, sleepers, timeout_s=TIMEOUT_S)
        probed = self.n_probes.get("z", 0)
        directory.follow(["a", "z"], ["z"])
        await asyncio.sleep(0.05)
        assert self.n_probes.get("z", 0) == probed
        directory.close()

    async def test_who_does_not_sleep_by_declaration_is_never_asked_for(self, relay, sleepers):
        directory = VariantDirectory(relay, INTERVAL_S, sleepers, timeout_s=TIMEOUT_S)
        directory.follow(["a", "z"])
        await asyncio.sleep(0.03)
        assert sleepers.n_asked == 0
        assert directory.is_ready("z") and not directory.is_asleep("z")
        directory.close()

    async def test_a_sleeper_that_leaves_the_split_is_forgotten(self, sleepers, directory):
        directory.follow(["a"])
        asked = sleepers.n_asked
        await asyncio.sleep(0.05)
        assert not directory.is_asleep("z") and sleepers.n_asked == asked


class TestFirstLook:
    """At the start of a replica, before it takes requests."""

    @pytest.fixture
    async def directory(self):
        relay = FakeRelay("a", "b", "c")
        directory = VariantDirectory(relay, 0.1, FakeSleepers(), timeout_s=TIMEOUT_S)
        directory.relay = relay
        yield directory
        directory.close()

    async def timed(self, directory, limit_s):
        directory.follow(["a", "b"])
        start_s = time.monotonic()
        missing = await directory.first_look(["a", "b"], limit_s)
        return missing, time.monotonic() - start_s

    async def test_it_ends_when_all_are_ready(self, directory):
        missing, took_s = await self.timed(directory, limit_s=5)
        assert (missing, took_s < 1) == ([], True)

    async def test_an_ingress_that_knows_no_way_yet_is_waited_for(self, directory):
        for name in "ab":
            directory.relay.cards[name] = raising(IngressDownError("refused"))
        asyncio.get_running_loop().call_later(0.3, self.come_up, directory.relay)
        missing, took_s = await self.timed(directory, limit_s=5)
        assert (missing, took_s >= 0.3) == ([], True)

    def come_up(self, relay):
        relay.cards |= {name: card_of(name) for name in "ab"}

    async def test_while_none_is_ready_it_takes_the_limit(self, directory):
        for name in "ab":
            directory.relay.cards[name] = raising(VariantDownError("no replica"))
        missing, took_s = await self.timed(directory, limit_s=0.4)
        assert (missing, took_s >= 0.4) == (["a", "b"], True)

    async def test_one_that_is_down_is_not_waited_for_when_another_is_ready(self, directory):
        directory.relay.cards["b"] = raising(VariantDownError("no replica"))
        missing, took_s = await self.timed(directory, limit_s=5)
        assert (missing, took_s < 1) == (["b"], True)
