"""The console's pure parts, its feed, and its paths in process."""

import asyncio
import hashlib
import json

import pytest

from serve_app.config.schema import RouterArgs, RouterUserConfig
from serve_app.console.devices import Placed, devices_of
from serve_app.console.moves import moving_share
from serve_app.console.pages import POLICY
from serve_app.domain.errors import (
    ConfigError,
    MalformedRequestError,
    RateLimitError,
    UnknownModelError,
)
from serve_app.domain.observation import Observation
from serve_app.domain.traffic import AliasRules, TrafficSplit
from serve_app.routing.split import assign
from serve_app.serving.console_feed import Feed
from serve_app.serving.console_reports import read_reports
from serve_app.serving.console_split import SplitChanger, parse_change
from serve_app.serving.recent_latency import N_STEPS, STEP_S, RecentLatency
from serve_app.serving.router_app import RouterApp
from serve_app.splits.live_split import (
    SplitChangedError,
    SplitUnreachableError,
    require_expected,
)
from tests.fakes.asgi import Exchange
from tests.fakes.metrics import recording_meters
from tests.fakes.relay import FakeApplications, FakeRelay, FakeSleepers, application, card_of

SPLIT = {"a": 6000, "b": 4000, "c": 0}
ADMIN, READER = "qtl-admin-key", "qtl-reader-key"


class TestMovingShare:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ({"x": 5000, "y": 3000, "z": 2000}, {"x": 2000, "y": 3000, "z": 5000}),
            ({"x": 9000, "y": 1000}, {"x": 8000, "y": 2000}),
            ({"x": 5000, "y": 5000, "z": 0}, {"x": 4500, "y": 4500, "z": 1000}),
            ({"x": 7000, "y": 3000}, {"y": 3000, "new": 7000}),
        ],
    )
    def test_it_is_what_the_routers_own_hash_moves(self, before, after):
        n = 20_000
        moved = sum(assign(f"s{i}", before) != assign(f"s{i}", after) for i in range(n)) / n
        assert moving_share(before, after) == pytest.approx(moved, abs=4 * 0.5 / n**0.5)

    def test_the_ends(self):
        assert moving_share(SPLIT, SPLIT) == pytest.approx(0, abs=1e-12)
        assert moving_share({"x": 10_000, "y": 0}, {"x": 0, "y": 10_000}) == 1

    def test_a_change_that_keeps_ratios_moves_no_more_than_it_must(self):
        assert moving_share({"x": 6000, "y": 4000}, {"x": 7000, "y": 3000}) == pytest.approx(0.1)


class TestDevices:
    def test_replicas_of_a_type_are_packed_and_bytes_told(self):
        gptq = Placed("gptq", 2, "L4", 0.46, weight_bytes=10, kv_bytes=5)
        awq = Placed("awq", 1, "L4", 0.5)
        first, second = devices_of([gptq, awq], None)
        assert [part.variant for part in first.parts] == ["awq", "gptq"]
        assert [(part.variant, part.n_bytes) for part in second.parts] == [("gptq", 15)]
        assert first.free_share == pytest.approx(0.04)
        assert first.parts[0].n_bytes is None

    def test_tensor_parallel_takes_whole_cards(self):
        devices = devices_of([Placed("fp16", 1, "H100", 1.0, n_gpus=2, weight_bytes=100)], None)
        assert [(d.name, d.parts[0].n_bytes) for d in devices] == [("H100 1", 50), ("H100 2", 50)]

    def test_without_a_gpu_it_is_the_hosts_memory(self):
        placed = [Placed("a", 2, weight_bytes=100), Placed("b", 1), Placed("c", 0, weight_bytes=9)]
        (host,) = devices_of(placed, 1000)
        assert [(part.variant, part.share) for part in host.parts] == [("a", 0.2)]
        assert devices_of(placed, None) == ()


class TestRecentLatency:
    def seen(self, ttft_s, status=200):
        return Observation("a", status, ttft_s, 1.0)

    def test_a_gap_is_a_gap_and_errors_have_no_part_in_times(self):
        latency = RecentLatency()
        for _ in range(100):
            latency.observe(self.seen(0.1), 1000.0)
        latency.observe(self.seen(5.0, 503), 1000.0)
        latency.observe(self.seen(None), 1000.0)  # no stream
        latency.observe(self.seen(0.4), 1000.0 + 2 * STEP_S)
        view = latency.view("a", 1000.0 + 2 * STEP_S)
        assert [x and round(x, 2) for x in view["steps"]["p50"][-3:]] == [0.1, None, 0.4]
        assert (view["n"], view["n_failed"]) == (101, 1)
        assert view["ttft_s"]["p50"] == pytest.approx(0.1, rel=0.02)
        assert len(view["steps"]["p99"]) == N_STEPS

    def test_of_answers_that_are_no_streams_failures_alone_are_told(self):
        latency = RecentLatency()
        for status in (200, 500):
            latency.observe(self.seen(None, status), 1000.0)
        view = latency.view("a", 1000.0)
        assert (view["n"], view["n_failed"], view["ttft_s"]["p50"]) == (0, 1, None)

    def test_what_is_old_is_forgotten(self):
        latency = RecentLatency()
        latency.observe(self.seen(0.1), 1000.0)
        view = latency.view("a", 1000.0 + N_STEPS * STEP_S)
        assert view["ttft_s"] == {"p50": None, "p95": None, "p99": None}
        assert set(view["steps"]["p50"]) == {None}
        latency.keep(frozenset({"b"}))
        assert latency.view("a", 2000.0) is None


class TestFeed:
    async def test_one_producer_for_all_and_none_for_nobody(self):
        made = 0

        async def look() -> bytes:
            nonlocal made
            made += 1
            return str(made).encode()

        feed = Feed(look, every_s=0.01, most=2)
        assert not feed.is_running
        with feed.watching() as first, feed.watching() as second:
            for _ in range(3):
                one, two = await asyncio.gather(anext(first), anext(second))
                assert one == two
            assert made == int(one)
            with pytest.raises(RateLimitError, match="2 watch"), feed.watching():
                pass
        assert not feed.is_running
        before = made
        await asyncio.sleep(0.05)
        assert made == before

    async def test_a_failure_ends_nothing_and_the_close_ends_all(self):
        answers = [b"1", None, b"2"]

        async def look() -> bytes:
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if answer is None:
                raise OSError("the controller is away")
            return answer

        feed = Feed(look, every_s=0.001)
        with feed.watching() as snapshots:
            assert [await anext(snapshots), await anext(snapshots)] == [b"1", b"2"]
            feed.close()
            with pytest.raises(StopAsyncIteration):
                await anext(snapshots)


class FakeStore:
    def __init__(self, split):
        self.split = dict(split)
        self.closed = 0
        self.hangs = False

    async def read(self):
        return dict(self.split)

    async def change(self, expected, wanted):
        if self.hangs:
            await asyncio.Event().wait()
        require_expected(self.split, expected)
        self.split = dict(wanted)

    async def close(self):
        self.closed += 1


def body(**changes):
    wanted = {"model": "m", "expected": SPLIT, "split": {"a": 5000, "b": 4000, "c": 1000}}
    return json.dumps(wanted | changes).encode()


ALIASES = {"m": AliasRules(TrafficSplit(SPLIT))}


class TestChange:
    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            ({"model": "other"}, UnknownModelError),
            ({"split": {"a": 5000, "b": 5000}}, MalformedRequestError),
            ({"split": {"a": 5000, "b": 5000, "z": 0}}, MalformedRequestError),
            ({"split": {"a": 5000, "b": 4000, "c": 999}}, ConfigError),
            ({"split": {"a": 11_000, "b": -1000, "c": 0}}, ConfigError),
            ({"split": {"a": "x", "b": 1, "c": 1}}, MalformedRequestError),
            ({"more": 1}, MalformedRequestError),
            ({"expected": {}}, MalformedRequestError),
        ],
    )
    def test_what_is_refused(self, wrong, error):
        with pytest.raises(error):
            parse_change(body(**wrong), ALIASES)
        with pytest.raises(MalformedRequestError):
            parse_change(b"\xff[", ALIASES)

    async def test_another_ones_change_is_not_overwritten(self):
        store = FakeStore({"a": 0, "b": 10_000, "c": 0})
        with pytest.raises(SplitChangedError, match="not what this page showed"):
            await SplitChanger(lambda model: store).change(parse_change(body(), ALIASES), "x")
        assert store.closed == 1

    async def test_what_does_not_answer_is_said_to_and_the_next_may_try(self):
        store = FakeStore(SPLIT)
        store.hangs = True
        changer = SplitChanger(lambda model: store, within_s=0.2)
        with pytest.raises(SplitUnreachableError, match="may or may not"):
            await changer.change(parse_change(body(), ALIASES), "x")
        store.hangs = False
        await changer.change(parse_change(body(), ALIASES), "x")
        assert (store.split["c"], store.closed) == (1000, 2)


class TestReports:
    def test_the_newest_of_each_kind_is_told_and_others_are_passed_over(self, tmp_path):
        campaign = {"verdict": "pass", "status": "valid", "headlines": ["int8 is faster"]}
        step = {"step": 0, "verdict": "fail", "reason": "TTFT", "n_requests": 5}
        rollout = {"phase": "rolled back", "current_bp": SPLIT, "started_at": "x", "steps": [step]}
        for name, content in (
            ("runs/one/report.json", campaign),
            ("roll/state.json", rollout),
            ("broken/report.json", None),
        ):
            path = tmp_path / name
            path.parent.mkdir(parents=True)
            path.write_text("{" if content is None else json.dumps(content))
        found = read_reports(tmp_path)
        assert (found["campaign"]["name"], found["campaign"]["verdict"]) == ("one", "pass")
        assert found["campaign"]["lines"] == ["valid", "int8 is faster"]
        assert found["rollout"]["lines"] == ["Step 1: fail: TTFT"]

    def test_no_folder_is_said(self, tmp_path):
        assert "QUANTILE_REPORTS_DIR" in read_reports(None)["missing"]
        assert "no folder" in read_reports(tmp_path / "none")["missing"]


@pytest.fixture
async def router(tmp_path, monkeypatch):
    monkeypatch.delenv("QUANTILE_REPORTS_DIR", raising=False)  # `make` sets it
    relay = FakeRelay(*SPLIT)
    relay.cards["a"] = card_of("a", facts={"gpu_type": "L4", "gpu_fraction": "0.4"})
    store = FakeStore(SPLIT)
    keys = tmp_path / "keys.json"
    sha = {name: hashlib.sha256(name.encode()).hexdigest() for name in (ADMIN, READER)}
    entries = {
        "boss": {"admin": True, "keys": [{"sha256": sha[ADMIN]}]},
        "guest": {"keys": [{"sha256": sha[READER]}]},
    }
    keys.write_text(json.dumps({"tenants": entries}))
    app = RouterApp(
        RouterArgs(model="m", probe_interval_s=0.001),
        relay,
        recording_meters(),
        FakeApplications(a=application("HEALTHY", RUNNING=2)),
        FakeSleepers(),
        store_of=lambda model: store,
    )
    app.configure(RouterUserConfig(split=SPLIT, admission={"keys_file": str(keys)}))
    app.store = store
    await asyncio.sleep(0.02)
    yield app
    app.close()


def bearer(key):
    return ("authorization", f"Bearer {key}")


JSON = ("content-type", "application/json")


class TestPaths:
    @pytest.mark.parametrize("path", ["", "/console.css", "/console.js"])
    async def test_the_files_need_no_key_hold_nothing_inline_and_are_guarded(self, router, path):
        exchange = await Exchange(router, "GET", f"/console{path}")()
        assert exchange.status == 200
        assert exchange.headers["content-security-policy"] == POLICY
        text = exchange.body.decode()
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text and "innerHTML" not in text
        assert " style=" not in text and "onclick" not in text

    @pytest.mark.parametrize("path", ["events", "state", "who", "split"])
    async def test_facts_need_a_key_where_the_router_does(self, router, path):
        method = "POST" if path == "split" else "GET"
        exchange = await Exchange(router, method, f"/console/{path}")()
        assert exchange.status == 401
        assert exchange.json["error"]["code"] == "invalid_api_key"

    async def test_the_snapshot_has_every_fact(self, router):
        exchange = await Exchange(router, "GET", "/console/state", headers=[bearer(READER)])()
        state = exchange.json
        a = state["variants"]["a"]
        assert (a["health"], a["bits"], a["weight_bytes"]) == ("ready", 4, 1000)
        assert a["replicas"] == {"running": 2, "target": 2}
        gpu, host = state["devices"]
        assert (gpu["name"], [part["share"] for part in gpu["parts"]]) == ("L4 1", [0.4, 0.4])
        assert {part["variant"] for part in host["parts"]} == {"b", "c"}
        assert state["aliases"]["m"]["split"] == SPLIT
        assert "QUANTILE_REPORTS_DIR" in state["reports"]["missing"]

    async def test_a_stream_begins_at_once_and_ends_with_its_watcher(self, router):
        exchange = Exchange(router, "GET", "/console/events", headers=[bearer(READER)])
        task = exchange.start()
        await exchange.sent(2)
        assert exchange.headers["content-type"].startswith("text/event-stream")
        event = exchange.messages[1]["body"].decode()
        assert json.loads(event.removeprefix("data: "))["model"] == "m"
        assert router._console.feed.is_running
        exchange.hung_up.set()
        await task
        assert not router._console.feed.is_running

    async def test_the_routers_end_ends_the_stream(self, router):
        exchange = Exchange(router, "GET", "/console/events", headers=[bearer(READER)])
        task = exchange.start()
        await exchange.sent(2)
        router.close()
        await asyncio.wait_for(task, 2)
        assert exchange.over

    async def test_an_admins_change_is_carried_out(self, router):
        headers = [bearer(ADMIN), JSON]
        exchange = await Exchange(router, "POST", "/console/split", body(), headers)()
        assert exchange.status == 200
        assert router.store.split == {"a": 5000, "b": 4000, "c": 1000}
        who = await Exchange(router, "GET", "/console/who", headers=[bearer(ADMIN)])()
        assert who.json == {"tenant": "boss", "admin": True}

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ([JSON], 401),
            ([bearer("qtl-wrong"), JSON], 401),
            ([bearer(READER), JSON], 403),
            ([bearer(ADMIN), JSON, ("sec-fetch-site", "cross-site")], 403),
            ([bearer(ADMIN), ("content-type", "text/plain")], 400),
        ],
    )
    async def test_who_and_what_is_refused(self, router, headers, status):
        exchange = await Exchange(router, "POST", "/console/split", body(), headers)()
        assert exchange.status == status
        assert router.store.split == SPLIT

    async def test_without_keys_the_console_is_open_and_read_only(self, router):
        router.configure(RouterUserConfig(split=SPLIT))
        assert (await Exchange(router, "GET", "/console/state")()).status == 200
        for headers, status in (([JSON], 401), ([bearer(ADMIN), JSON], 403)):
            exchange = await Exchange(router, "POST", "/console/split", body(), headers)()
            assert exchange.status == status
        assert (await Exchange(router, "DELETE", "/console/split")()).status == 405
        assert (await Exchange(router, "GET", "/console/nothing")()).status == 404
