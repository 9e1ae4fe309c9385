"""The fake engine in process: no sockets, and a clock that jumps instead of waiting."""

import asyncio
import json

import pytest

from serve_app.domain.errors import ConfigError, EngineError
from serve_app.engines.fake import FakeEngine, create_app
from serve_app.engines.fake_script import (
    DieMidStream,
    FailEvery,
    FailFirst,
    FakeScript,
    Freeze,
    HangBeforeFirstByte,
    RefuseHealth,
    SlowBody,
)


class JumpClock:
    """A clock that moves only when someone sleeps; sleepers wake in order of their deadlines."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s
        await asyncio.sleep(0)


class Client:
    """One ASGI exchange; records each message with the instant at which it was sent."""

    def __init__(self, app: FakeEngine, clock: JumpClock | None = None) -> None:
        self._app = app
        self._clock = clock or JumpClock()
        self.gone = asyncio.Event()
        self.messages: list[tuple[float, dict]] = []

    async def __call__(self, method: str, path: str, body: object = None) -> "Client":
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        inbox = [{"type": "http.request", "body": raw, "more_body": False}]

        async def receive() -> dict:
            if inbox:
                return inbox.pop()
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            self.messages.append((self._clock.now_s, message))

        scope = {"type": "http", "method": method, "path": path, "headers": []}
        await self._app(scope, receive, send)
        return self

    @property
    def status(self) -> int:
        return self.messages[0][1]["status"]

    @property
    def raw(self) -> bytes:
        return b"".join(message.get("body", b"") for _, message in self.messages)

    @property
    def json(self) -> dict:
        return json.loads(self.raw)

    @property
    def events(self) -> list[dict]:
        lines = [line for line in self.raw.split(b"\n") if line.startswith(b"data: {")]
        return [json.loads(line[6:]) for line in lines]


def fake(**script: object) -> tuple[FakeEngine, JumpClock]:
    clock = JumpClock()
    app = create_app(["m@a", "m"], FakeScript(**script), clock=clock, sleep=clock.sleep)
    return app, clock


def chat(**fields: object) -> dict:
    return {"model": "m", "messages": [{"role": "user", "content": "hello"}], **fields}


async def test_chat_stream_has_the_shape_and_the_times_of_the_script():
    app, clock = fake(ttft_ms=50, itl_ms=10, output_tokens=3)
    started_s = clock.now_s
    body = chat(stream=True, stream_options={"include_usage": True})
    client = await Client(app, clock)("POST", "/v1/chat/completions", body)
    role, *tokens, finish, usage = client.events
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [t["choices"][0]["delta"]["content"] for t in tokens] == [" alpha", " bravo", " charlie"]
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert finish["choices"][0]["delta"] == {"content": ""}
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 5, "total_tokens": 8, "completion_tokens": 3}
    assert client.raw.endswith(b"data: [DONE]\n\n")
    with_text = [
        at - started_s for at, m in client.messages if b'"content":" ' in m.get("body", b"")
    ]
    assert with_text == pytest.approx([0.050, 0.060, 0.070])
    assert app.tokens_total == 3
    assert app.running == 0


async def test_limits_cut_with_finish_reason_length_on_the_last_token():
    app, _ = fake(output_tokens=5)
    forced = await Client(app)(
        "POST", "/v1/chat/completions", chat(stream=True, max_tokens=9, ignore_eos=True)
    )
    assert len(forced.events) == 10
    assert forced.events[-1]["choices"][0]["finish_reason"] == "length"
    assert forced.events[-1]["choices"][0]["delta"]["content"]
    short = await Client(app)("POST", "/v1/chat/completions", chat(max_completion_tokens=2))
    assert short.json["usage"]["completion_tokens"] == 2
    assert short.json["choices"][0]["finish_reason"] == "length"
    at_least = await Client(app)("POST", "/v1/chat/completions", chat(min_tokens=7))
    assert at_least.json["usage"]["completion_tokens"] == 7
    assert at_least.json["choices"][0]["finish_reason"] == "stop"


async def test_completions_and_continuous_usage():
    app, _ = fake(output_tokens=2)
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "m@a", "prompt": [1, 2, 3], "stream": True, "stream_options": options}
    client = await Client(app)("POST", "/v1/completions", body)
    assert [event["usage"]["completion_tokens"] for event in client.events] == [1, 2, 2, 2]
    assert [event["choices"][0]["text"] for event in client.events[:-1]] == [" alpha", " bravo", ""]
    assert client.events[0]["object"] == "text_completion"
    assert client.events[0]["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
async def test_unknown_model_is_404_in_vllms_shape(path):
    app, _ = fake()
    client = await Client(app)("POST", path, {"model": "nope"})
    assert client.status == 404
    assert client.json["error"] == {
        "message": "The model `nope` does not exist. Valid aliases: m@a, m.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


@pytest.mark.parametrize(
    "body",
    [
        b"{not json",
        {"model": "m"},
        {"model": "m", "messages": "text"},
        chat(max_tokens=0),
        chat(n=2),
        chat(max_tokens=40_000),
    ],
)
async def test_bad_requests_are_400(body):
    app, _ = fake()
    client = await Client(app)("POST", "/v1/chat/completions", body)
    assert client.status == 400
    assert client.json["error"]["code"] == 400
    assert app.requests_total == 0


async def test_the_other_paths():
    app, _ = fake(output_tokens=2)
    models = (await Client(app)("GET", "/v1/models")).json["data"]
    assert [(m["id"], m["max_model_len"]) for m in models] == [("m@a", 32768), ("m", 32768)]
    assert (await Client(app)("GET", "/health")).status == 200
    tokens = (await Client(app)("POST", "/tokenize", {"model": "m", "prompt": "hi"})).json
    assert tokens["tokens"] == [104, 105] and tokens["count"] == 2
    embedded = await Client(app)("POST", "/v1/embeddings", {"model": "m", "input": ["a", "b"]})
    assert [row["index"] for row in embedded.json["data"]] == [0, 1]
    response = (await Client(app)("POST", "/v1/responses", {"model": "m", "input": "hi"})).json
    assert response["status"] == "completed"
    assert response["output"][0]["content"][0]["text"] == " alpha bravo"
    streamed = await Client(app)("POST", "/v1/responses", {"input": "hi", "stream": True})
    assert [event["sequence_number"] for event in streamed.events] == list(range(10))
    assert streamed.events[-1]["type"] == "response.completed"
    assert (await Client(app)("GET", "/nope")).status == 404
    assert (await Client(app)("DELETE", "/v1/models")).status == 405


@pytest.mark.parametrize(("fault", "statuses"), [
    (FailFirst(n=2, status=503), [503, 503, 200, 200]),
    (FailEvery(k=2, status=500), [200, 500, 200, 500]),
])  # fmt: skip
async def test_scripted_failures(fault, statuses):
    app, _ = fake(faults=(fault,))
    answers = [await Client(app)("POST", "/v1/chat/completions", chat()) for _ in statuses]
    assert [client.status for client in answers] == statuses
    assert answers[1].status == 200 or answers[1].json["error"]["code"] == statuses[1]


async def test_death_mid_stream_leaves_the_body_open():
    app, _ = fake(output_tokens=9, faults=(DieMidStream(after_tokens=3),))
    client = Client(app)
    with pytest.raises(EngineError):
        await client("POST", "/v1/chat/completions", chat(stream=True))
    assert len(client.events) == 1 + 3
    assert client.messages[-1][1]["more_body"] is True
    assert app.running == 0


async def test_freeze_moves_every_token_after_it():
    app, clock = fake(ttft_ms=50, itl_ms=10, output_tokens=4, faults=(Freeze(0.055, 3.0),))
    started_s = clock.now_s
    client = await Client(app, clock)("POST", "/v1/chat/completions", chat(stream=True))
    with_text = [
        at - started_s for at, m in client.messages if b'"content":" ' in m.get("body", b"")
    ]
    assert with_text == pytest.approx([0.050, 3.060, 3.070, 3.080])


def test_freeze_counts_only_the_overlap():
    script = FakeScript(faults=(Freeze(1.0, 2.0), Freeze(4.0, 1.0)))
    assert script.work_end(0.0, 0.9) == pytest.approx(0.9)
    assert script.work_end(0.5, 1.0) == pytest.approx(3.5)
    assert script.work_end(2.0, 0.5) == pytest.approx(3.5)
    assert script.work_end(2.0, 1.5) == pytest.approx(5.5)
    assert script.work_end(5.0, 1.0) == pytest.approx(6.0)


async def test_slow_body_splits_events_and_loses_nothing():
    whole = await Client(fake()[0])("POST", "/v1/chat/completions", chat(stream=True))
    app, _ = fake(faults=(SlowBody(piece_bytes=7, delay_ms=0),))
    slow = await Client(app)("POST", "/v1/chat/completions", chat(stream=True))
    contents = [[e["choices"][0]["delta"] for e in client.events] for client in (whole, slow)]
    assert contents[0] == contents[1]
    assert all(len(message.get("body", b"")) <= 7 for _, message in slow.messages)


async def test_refused_health_leaves_generation_alone():
    app, _ = fake(faults=(RefuseHealth(),))
    assert (await Client(app)("GET", "/health")).status == 503
    assert (await Client(app)("POST", "/v1/chat/completions", chat())).status == 200


async def running_gauge(app: FakeEngine) -> float:
    text = (await Client(app)("GET", "/metrics")).raw.decode()
    line = next(row for row in text.splitlines() if row.startswith("vllm:num_requests_running{"))
    return float(line.split()[-1])


async def is_running(app: FakeEngine) -> None:
    for _ in range(100):
        if app.running:
            return
        await asyncio.sleep(0)
    raise AssertionError("the request did not reach the engine")


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_stops_the_request_and_the_gauge_returns_to_zero(stream):
    app = create_app(["m"], FakeScript(faults=(HangBeforeFirstByte(),)))
    client = Client(app)
    request = asyncio.create_task(client("POST", "/v1/chat/completions", chat(stream=stream)))
    await is_running(app)
    assert await running_gauge(app) == 1
    client.gone.set()
    await request
    assert client.messages == []
    assert await running_gauge(app) == 0
    assert app.aborted_total == 1


async def test_cancellation_from_outside_is_not_swallowed():
    app = create_app(["m"], FakeScript(ttft_ms=60_000))
    request = asyncio.create_task(Client(app)("POST", "/v1/chat/completions", chat()))
    await is_running(app)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert app.running == 0


async def test_max_num_seqs_makes_requests_wait():
    app = create_app(["m"], FakeScript(max_num_seqs=1, ttft_ms=1, itl_ms=0, output_tokens=2))
    await asyncio.gather(*(Client(app)("POST", "/v1/chat/completions", chat()) for _ in range(3)))
    assert app.peak_running == 1
    assert app.waiting == 0


async def test_jitter_is_seeded():
    async def instants(seed: int) -> list[float]:
        app, clock = fake(jitter=0.5, seed=seed, output_tokens=5)
        client = await Client(app, clock)("POST", "/v1/chat/completions", chat(stream=True))
        return [at for at, _ in client.messages]

    assert await instants(1) == await instants(1)
    assert await instants(1) != await instants(2)


@pytest.mark.parametrize(
    "raw",
    [
        {"ttft": 1},
        {"ttft_ms": -1},
        {"ttft_ms": "50"},
        {"jitter": 1.0},
        {"output_tokens": 0},
        {"faults": [{"kind": "Nope"}]},
        {"faults": [{"kind": "FailFirst", "n": 0}]},
        {"faults": [{"kind": "FailFirst", "n": 1, "extra": 1}]},
    ],
)
def test_wrong_scripts_are_refused(raw):
    with pytest.raises(ConfigError):
        FakeScript.from_dict(raw)


def test_script_from_plain_data():
    raw = {"ttft_ms": 5, "faults": [{"kind": "Freeze", "start_s": 1, "duration_s": 2}]}
    assert FakeScript.from_dict(raw) == FakeScript(ttft_ms=5, faults=(Freeze(1, 2),))


def test_model_names_are_distinct_and_present():
    for names in ([], ["m", "m"]):
        with pytest.raises(ConfigError):
            create_app(names)
