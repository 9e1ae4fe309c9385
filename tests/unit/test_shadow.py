"""Mirroring as the router drives it, on scripted variants: no sockets, no real clock needed."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from serve_app.config.shadow import ShadowConfig
from serve_app.serving.http import SHADOW_KEY
from serve_app.serving.relay import VariantDownError
from serve_app.serving.shadow import Shadow
from serve_app.serving.shadow_ask import DroppedError
from serve_app.serving.shadow_tap import Tap
from serve_app.serving.upstream import UpstreamTruncatedError
from tests.fakes.relay import FakeAnswer, FakeRelay, busy
from tests.fakes.shadow_metrics import RecordingShadowMetrics

GREEDY = {"model": "m", "prompt": "p", "temperature": 0}


def said(text: str, finish_reason: str = "stop") -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish_reason}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}}).encode()


def scope_of(*headers: tuple[bytes, bytes], path: str = "/v1/completions") -> dict:
    return {"method": "POST", "path": path, "query_string": b"", "headers": list(headers)}


class Bench:
    """A shadow over scripted variants, and what the router does with it."""

    def __init__(self) -> None:
        self.relay = FakeRelay()
        self.metrics = RecordingShadowMetrics()
        self.now_s = 100.0
        self.shadow = Shadow(
            self.relay, self.metrics, clock=lambda: self.now_s, wall_clock=lambda: 1.5
        )
        self.ids: Iterator[int] = iter(range(10**9))
        self.configure()

    def configure(self, **settings: object) -> None:
        self.shadow.configure(ShadowConfig(**{"variant": "b", "share_bp": 10_000, **settings}))

    def answers(
        self, *pieces: object, status: int = 200, content_type: str = "text/event-stream"
    ) -> None:
        headers = (("content-type", content_type),)
        self.relay.scripts["b"] = lambda: FakeAnswer(*pieces, status=status, headers=headers)

    def tap(self, body: object = None, primary: str = "a", **more: object) -> Tap | None:
        raw = body if isinstance(body, bytes) else json.dumps(GREEDY if body is None else body)
        raw = raw if isinstance(raw, bytes) else raw.encode()
        scope = more.pop("scope", None) or scope_of()
        request_id = more.pop("request_id", None) or f"r-{next(self.ids)}"
        return self.shadow.tap(request_id, scope, raw, primary, **more)

    def serve(self, text: str = "one two", body: object = None, **more: object) -> Tap | None:
        """A request from its head to its end, without a turn of the loop."""
        tap = self.tap(body, **more)
        if tap is not None:
            tap.piece(said(text))
            tap.ended(200, True, 0.25, 1.5)
        return tap

    async def rest(self) -> None:
        """Until nothing is under way."""
        for _ in range(10_000):
            if not (self.shadow._live or self.shadow._tasks or self.shadow._work._n_waiting):
                return
            await asyncio.sleep(0.001)
        raise AssertionError("something is under way for ever")

    async def rest_of(self, *waiting: Tap) -> None:
        """The same, but for requests whose answer has not begun."""
        for _ in range(10_000):
            if self.shadow._live <= set(waiting) and not self.shadow._tasks:
                return
            await asyncio.sleep(0.001)
        raise AssertionError("something is under way for ever")

    @property
    def view(self) -> dict:
        view = self.shadow.view()
        assert view is not None
        return view


@pytest.fixture
async def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.shadow.close()
    await bench.rest()
    assert bench.shadow._held.n_bytes == 0, "bytes are held for ever"
    assert bench.shadow._n_running == 0, "a slot is taken for ever"
    assert not bench.shadow._queue
    assert bench.relay.leftovers() == []


async def test_both_answers_are_compared_and_counted(bench):
    bench.answers(said("one three", "length"))
    bench.serve("one two")
    await bench.rest()
    assert bench.metrics.mirrored == {("a", "b", "greedy"): 1}
    assert sorted(bench.metrics.agreements) == [
        ("a", "b", "exact", 0.0),
        ("a", "b", "finish_reason", 0.0),
        ("a", "b", "normalised", 0.0),
        ("a", "b", "word_prefix", 0.5),
    ]
    assert bench.metrics.lengths == [("a", "b", "word", 1.0)]
    assert bench.metrics.latencies == [
        ("a", "b", "primary_ttft", 0.25),
        ("a", "b", "primary_duration", 1.5),
        ("a", "b", "shadow_ttft", 0.0),
        ("a", "b", "shadow_duration", 0.0),
    ]
    assert bench.metrics.why() == {}
    assert bench.view["mirrored"] == {"greedy": 1}
    assert bench.view["means"]["word_prefix"] == 0.5


async def test_answers_that_are_no_streams_have_a_duration_and_no_ttft(bench):
    bench.answers(said("one two"), content_type="application/json")
    tap = bench.tap()
    tap.piece(said("one two"))
    tap.ended(200, True, None, 1.5)
    await bench.rest()
    assert [(kind, seconds) for _, _, kind, seconds in bench.metrics.latencies] == [
        ("primary_duration", 1.5),
        ("shadow_duration", 0.0),
    ]


async def test_the_candidate_is_asked_for_the_same_and_told_that_it_is_a_mirror(bench):
    scope = scope_of((b"x-request-id", b"r"), path="/v1/chat/completions")
    bench.answers(said("x"))
    bench.serve(body={**GREEDY, "model": "m@a"}, scope=scope)
    await bench.rest()
    sent, body = bench.relay.requests[0]
    assert bench.relay.asked == ["b"]
    assert (sent["path"], sent["headers"]) == (scope["path"], scope["headers"])
    assert sent[SHADOW_KEY] is True
    assert json.loads(body) == GREEDY
    assert bench.relay.timeouts_s == [120.0]


async def test_the_candidate_is_not_asked_before_the_primarys_first_byte(bench):
    tap = bench.tap()
    await asyncio.sleep(0.01)
    tap.piece(b"")
    await asyncio.sleep(0.01)
    assert bench.relay.asked == []
    tap.piece(said("one"))
    assert bench.relay.asked == []  # the piece at hand goes first
    await asyncio.sleep(0.01)
    assert bench.relay.asked == ["b"]
    tap.ended(200, True, 0.1, 0.2)


async def test_answers_in_pieces_and_in_either_order_of_their_ends(bench):
    release = asyncio.Event()
    answer = said("one two")
    bench.answers(answer[:10], release, answer[10:])
    bench.serve("one two")
    await asyncio.sleep(0.01)
    assert bench.view["running"] == 1
    release.set()
    await bench.rest()
    tap = bench.tap()
    tap.piece(answer[:7])
    await asyncio.sleep(0.01)
    assert bench.view["running"] == 0  # the candidate is done, the primary is not
    tap.piece(answer[7:])
    tap.ended(200, True, 0.1, 0.2)
    await bench.rest()
    assert bench.metrics.mirrored["a", "b", "greedy"] == 2
    assert [share for *_, kind, share in bench.metrics.agreements if kind == "exact"] == [1, 1]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"primary": "b"}, "same_variant"),
        ({"scope": scope_of((b"x-quantile-shadow", b"1"))}, "is_mirror"),
        ({"body": {**GREEDY, "prompt": "x" * 3_000}}, "body_too_large"),
        ({"body": {"model": "m"}}, "sampled"),
        ({"body": {"model": "m", "temperature": "hot"}}, "unreadable_request"),
    ],
)
async def test_what_is_not_mirrored_and_why(bench, more, reason):
    bench.configure(max_body_bytes=2_000)
    bench.serve(**more)
    await bench.rest()
    assert bench.relay.asked == []
    assert bench.metrics.why() == {reason: 1}


async def test_what_was_never_chosen_is_not_counted(bench):
    for path in ("/v1/embeddings", "/tokenize", "/v1/responses"):
        assert bench.tap(scope=scope_of(path=path)) is None
    bench.configure(share_bp=0)
    assert bench.tap() is None
    bench.shadow.configure(None)
    assert bench.tap() is None
    assert bench.shadow.view() is None
    assert bench.metrics.why() == {}


async def test_a_retry_of_a_mirrored_request_is_not_mirrored_again(bench):
    bench.answers(said("x"))
    assert bench.serve(request_id="same") is not None
    assert bench.serve(request_id="same", primary="c") is None
    await bench.rest()
    assert bench.relay.asked == ["b"]
    assert bench.metrics.why() == {"repeated": 1}


async def test_a_session_is_mirrored_whole_or_not_at_all(bench):
    bench.configure(share_bp=5_000)
    bench.answers(said("x"))
    for session in map(str, range(40)):
        chosen = {bench.serve(session=session) is not None for _ in range(3)}
        assert len(chosen) == 1
    await bench.rest()
    assert 0 < len(bench.relay.asked) < 120


async def test_sampled_requests_count_by_their_times_alone(bench):
    bench.configure(only_greedy=False)
    bench.answers(said("other"))
    bench.serve(body={"model": "m", "temperature": 0.7, "seed": 3})
    await bench.rest()
    assert bench.metrics.mirrored == {("a", "b", "sampled"): 1}
    assert bench.metrics.agreements == bench.metrics.lengths == []
    assert len(bench.metrics.latencies) == 4


@pytest.mark.parametrize(
    ("status", "whole", "pieces"), [(500, True, 1), (404, True, 1), (200, False, 1), (200, True, 0)]
)
async def test_a_primary_that_failed_has_nothing_to_compare(bench, status, whole, pieces):
    bench.answers(asyncio.Event())
    tap = bench.tap()
    for _ in range(pieces):
        tap.piece(b"data: ")
    await asyncio.sleep(0.01)
    tap.ended(status, whole, 0.1, 0.2)
    await bench.rest()
    assert bench.metrics.why() == {"primary_failed": 1}
    assert [each.ended for each in bench.relay.answers] == [["closed"]] * pieces


@pytest.mark.parametrize(
    ("pieces", "status", "reason"),
    [
        ([b'{"error": 1}'], 500, "shadow_failed"),
        ([b'{"error": 1}'], 400, "shadow_refused"),
        ([b"data: ", UpstreamTruncatedError("cut")], 200, "shadow_cut"),
        ([b'data: {"error": {"message": "out of memory"}}\n\n'], 200, "shadow_failed"),
        ([b"<html>"], 200, "shadow_unreadable"),
        ([b"x" * 900, b"x" * 200], 200, "shadow_too_large"),
    ],
)
async def test_whatever_the_candidate_does_is_counted_and_its_connection_ended(
    bench, pieces, status, reason
):
    bench.configure(max_body_bytes=1_000)
    bench.answers(*pieces, status=status)
    bench.serve()
    await bench.rest()
    assert bench.metrics.why() == {reason: 1}
    assert bench.metrics.latencies == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [(busy(), "shadow_busy"), (lambda: _raise(VariantDownError("no replica")), "shadow_down")],
)
async def test_a_candidate_that_does_not_take_it(bench, script, reason):
    bench.relay.scripts["b"] = script
    bench.serve()
    await bench.rest()
    assert bench.metrics.why() == {reason: 1}


async def test_a_slow_candidate_is_given_up_at_its_deadline(bench):
    bench.configure(timeout_s=0.02)
    bench.answers(b"{", asyncio.Event())
    bench.serve()
    await bench.rest()
    assert bench.metrics.why() == {"shadow_late": 1}
    assert bench.relay.answers[0].ended == ["closed"]


async def test_a_fault_of_our_own_is_logged_and_stays_here(bench, caplog):
    bench.relay.scripts["b"] = lambda: _raise(ZeroDivisionError())
    with caplog.at_level("ERROR", logger="ray.serve"):
        bench.serve()
        await bench.rest()
    assert bench.metrics.why() == {"bug": 1}
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("primary", "candidate", "reason"),
    [
        ("x" * 300_000, "x", "primary_too_large"),
        ("x", "x" * 300_000, "shadow_too_large"),
    ],
)
async def test_texts_that_would_take_too_long_to_compare(bench, primary, candidate, reason):
    bench.answers(said(candidate))
    bench.serve(primary)
    await bench.rest()
    assert bench.metrics.why() == {reason: 1}


async def test_a_primary_that_cannot_be_read(bench):
    bench.answers(said("x"))
    tap = bench.tap()
    tap.piece(b"<html>")
    tap.ended(200, True, 0.1, 0.2)
    await bench.rest()
    assert bench.metrics.why() == {"primary_unreadable": 1}


async def test_so_many_at_once_so_many_wait_and_the_rest_is_dropped(bench):
    bench.configure(max_concurrent=2, max_queued=3)
    release = asyncio.Event()
    bench.answers(release, said("one two"))
    for _ in range(10):
        bench.serve()
    await asyncio.sleep(0.01)
    assert (bench.view["running"], bench.view["queued"]) == (2, 3)
    assert len(bench.relay.asked) == 2
    release.set()
    await bench.rest()
    assert bench.metrics.why() == {"queue_full": 5}
    assert bench.metrics.mirrored["a", "b", "greedy"] == 5


async def test_a_waiting_mirror_leaves_the_queue_with_its_primary(bench):
    bench.configure(max_concurrent=1, max_queued=1)
    release = asyncio.Event()
    bench.answers(release, said("one two"))
    bench.serve()
    await asyncio.sleep(0.01)
    waiting = bench.tap()
    waiting.piece(b"x")
    await asyncio.sleep(0.01)
    assert bench.view["queued"] == 1
    waiting.ended(200, False, 0.1, 0.1)
    assert bench.view["queued"] == 0
    bench.serve()
    release.set()
    await bench.rest()
    assert bench.metrics.mirrored["a", "b", "greedy"] == 2


async def test_the_bytes_held_are_bounded_and_given_back(bench):
    bench.configure(
        max_concurrent=1, max_queued=1_000, max_body_bytes=30_000, max_held_bytes=90_000
    )
    release = asyncio.Event()
    bench.answers(release, said("one"))
    most = 0
    for _ in range(100):
        tap = bench.tap()
        if tap is not None:
            for _ in range(10):
                tap.piece(b"x" * 1_000)
                most = max(most, bench.view["held_bytes"])
            tap.ended(200, True, 0.1, 0.2)
        await asyncio.sleep(0)
    assert most <= 90_000 + 30_000  # one tap finds out that it is over, and lets go of all it has
    assert bench.metrics.why()["bytes_held"] > 80
    release.set()
    await bench.rest()
    assert bench.view["held_bytes"] == 0


async def test_a_long_primary_is_let_go_at_once(bench):
    bench.configure(max_body_bytes=1_000)
    bench.answers(asyncio.Event())
    tap = bench.tap()
    tap.piece(b"x" * 900)
    await asyncio.sleep(0.01)
    tap.piece(b"x" * 200)
    assert bench.view["held_bytes"] == 0
    for _ in range(1_000):
        tap.piece(b"x" * 900)
    assert bench.view["held_bytes"] == 0
    tap.ended(200, True, 0.1, 0.2)
    await bench.rest()
    assert bench.metrics.why() == {"primary_too_large": 1}


async def test_mirroring_pauses_after_failures_and_goes_on(bench, caplog):
    bench.configure(pause_after_failures=3, pause_s=30, max_concurrent=1)
    bench.answers(b"", status=500)
    with caplog.at_level("WARNING", logger="ray.serve"):
        for _ in range(6):
            bench.serve()
        await bench.rest()
    assert len(bench.relay.asked) == 3
    assert bench.metrics.why() == {"shadow_failed": 3, "paused": 3}  # those that waited
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert bench.serve() is None
    assert bench.view["paused_for_s"] == 30
    bench.now_s += 31
    bench.answers(said("one two"))
    bench.serve()
    await bench.rest()
    assert bench.metrics.mirrored["a", "b", "greedy"] == 1
    assert bench.view["paused_for_s"] == 0


async def test_refusals_of_single_requests_do_not_pause_it(bench):
    bench.configure(pause_after_failures=2)
    bench.answers(b"too long", status=400)
    for _ in range(5):
        bench.serve()
    await bench.rest()
    assert bench.metrics.why() == {"shadow_refused": 5}


async def test_streams_that_end_in_errors_pause_it(bench):
    bench.configure(pause_after_failures=3)
    bench.answers(b'data: {"error": {}}\n\n')
    for _ in range(3):
        bench.serve()
        await bench.rest()
    assert bench.serve() is None
    assert bench.metrics.why() == {"shadow_failed": 3, "paused": 1}


@pytest.mark.parametrize("other", [None, {"variant": "c"}])
async def test_another_candidate_ends_what_is_under_way_for_the_one_before(bench, other):
    bench.configure(max_concurrent=1)
    bench.answers(asyncio.Event())
    for _ in range(3):
        bench.serve()
    begun = bench.tap()
    await asyncio.sleep(0.01)
    if other is None:
        bench.shadow.configure(None)
    else:
        bench.configure(**other)
    begun.piece(b"late")
    begun.ended(200, True, 0.1, 0.2)
    await bench.rest()
    assert bench.metrics.dropped == {("a", "b", "reconfigured"): 4}
    assert bench.relay.asked == ["b"]
    assert bench.relay.answers[0].ended == ["closed"]


async def test_other_limits_leave_what_is_under_way_and_let_the_queue_go_on(bench):
    bench.configure(max_concurrent=1)
    release = asyncio.Event()
    bench.answers(release, said("one two"))
    for _ in range(3):
        bench.serve()
    await asyncio.sleep(0.01)
    assert bench.view["running"] == 1
    bench.configure(max_concurrent=3)
    assert bench.view["running"] == 3
    release.set()
    await bench.rest()
    assert bench.metrics.mirrored["a", "b", "greedy"] == 3


async def test_bytes_that_come_while_the_mirror_is_stopped_are_not_held(bench):
    """A socket may bring a piece between the drop and the end of the task that reads it."""

    class Late(FakeAnswer):
        async def hand_on(self, sink) -> None:
            self.sink = sink
            await asyncio.Event().wait()

    bench.relay.scripts["b"] = Late
    tap = bench.tap()
    tap.piece(b"x")
    await asyncio.sleep(0.01)
    tap.ended(200, False, 0.1, 0.1)
    with pytest.raises(DroppedError):
        await bench.relay.answers[0].sink(b"late")
    await bench.rest()
    assert bench.view["held_bytes"] == 0
    assert bench.metrics.why() == {"primary_failed": 1}


async def test_a_request_that_begins_during_a_pause_is_dropped(bench):
    bench.configure(pause_after_failures=1)
    bench.answers(b"", status=500)
    early = bench.tap()
    bench.serve()
    await bench.rest_of(early)
    early.piece(said("x"))
    await asyncio.sleep(0.01)
    assert bench.metrics.why() == {"shadow_failed": 1, "paused": 1}
    early.ended(200, True, 0.1, 0.1)


async def test_the_end_is_told_once(bench):
    bench.answers(said("one two"))
    tap = bench.serve()
    tap.ended(500, False, 9, 9)
    await bench.rest()
    tap.ended(500, False, 9, 9)
    tap.piece(b"late")
    assert bench.metrics.mirrored["a", "b", "greedy"] == 1
    assert bench.metrics.why() == {}


async def test_the_log_has_digests_and_no_text(bench, tmp_path):
    path = tmp_path / "shadow.jsonl"
    bench.configure(log={"path": str(path)})
    bench.answers(said("secret answer"))
    bench.serve("secret answer", body={**GREEDY, "prompt": "secret prompt"}, request_id="r-x")
    bench.serve("secret else", body={**GREEDY, "prompt": "secret prompt"})
    await bench.rest()
    bench.answers(b"secret", status=500)
    bench.serve()
    await bench.rest()
    raw = path.read_text()
    assert "secret" not in raw
    first, second, third = map(json.loads, raw.splitlines())
    assert first["request_id"] == "r-x"
    assert first["outcome"] == "compared"
    assert first["time_s"] == 1.5
    assert first["primary"] == {
        "variant": "a",
        "status": 200,
        "ttft_s": 0.25,
        "duration_s": 1.5,
        "tokens": 3,
        "chars": 13,
        "digest": first["shadow"]["digest"],
    }
    assert first["agreement"]["exact"] is True
    assert second["primary"]["digest"] != second["shadow"]["digest"]
    assert second["request_digest"] == first["request_digest"]
    assert third["outcome"] == "shadow_failed"
    assert third["shadow"]["status"] == 500
    assert third["agreement"] is third["shadow"]["digest"] is third["primary"]["status"] is None
    assert bench.view["log"] == {"path": str(path), "lines": 3, "lines_lost": 0, "failure": None}


async def test_texts_are_logged_only_when_asked_for_and_on_one_line(bench, tmp_path):
    path = tmp_path / "shadow.jsonl"
    bench.configure(log={"path": str(path), "texts": True})
    bench.answers(said("one\nthree"))
    bench.serve("one\ntwo", body=json.dumps(GREEDY, indent=2).encode())
    await bench.rest()
    (line,) = map(json.loads, path.read_text().splitlines())
    assert line["request"] == GREEDY
    assert (line["primary"]["text"], line["shadow"]["text"]) == ("one\ntwo", "one\nthree")


async def test_the_log_takes_its_share(bench, tmp_path):
    path = tmp_path / "shadow.jsonl"
    bench.configure(log={"path": str(path), "sample_bp": 2_000}, max_queued=1_000)
    bench.answers(said("one two"))
    for _ in range(30):
        for _ in range(10):
            bench.serve()
        await bench.rest()
    assert bench.metrics.mirrored["a", "b", "greedy"] == 300
    assert 30 < len(path.read_text().splitlines()) < 100


async def test_a_log_that_cannot_be_written_costs_nothing_else(bench, caplog):
    bench.configure(log={"path": "/dev/full"})
    bench.answers(said("one two"))
    for _ in range(3):
        bench.serve()
        await bench.rest()
    assert bench.metrics.mirrored["a", "b", "greedy"] == 3
    assert len(caplog.records) == 1
    assert "No space left" in bench.view["log"]["failure"]


def _raise(error: Exception) -> FakeAnswer:
    raise error
