"""What OpenAI's client sees of every way in which a variant can fail; real sockets throughout."""

import asyncio
import json
import time

import httpx
import openai
import pytest

from serve_app.engines.fake_wire import Answer, StreamChunks, StreamOptions, full_body
from tests.fakes.raw_server import Peer, answer
from tests.fakes.router_on_a_port import RouterOnAPort

MARK = b"x-variant: a"
CONFIG = {"split": {"a": 10_000, "b": 0}, "fallback": ["b"]}
SAID = {"kind": "chat", "request_id": "r", "created": 1, "model": "m", "prompt_tokens": 3}
N_TOKENS = 6


def answered(kind: str) -> Answer:
    return Answer(**{**SAID, "kind": kind}, n_tokens=N_TOKENS, finish_reason="length", seed=0)


def events(kind: str) -> list[bytes]:
    """All events of a stream, in the shape of its API."""
    if kind != "response":
        chunks = StreamChunks(answered(kind), StreamOptions())
        tokens = [chunks.token(index) for index in range(N_TOKENS)]
        return [*chunks.opening(), *tokens, *chunks.closing()]
    told = [
        {"type": "response.output_text.delta", "item_id": "i", "output_index": 0}
        | {"content_index": 0, "delta": f" {n}", "logprobs": [], "sequence_number": n}
        for n in range(N_TOKENS)
    ]
    return [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in told]


def piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\n" + MARK + b"\r\n\r\n"
)
REFUSED = answer(b"Request dropped due to backpressure", status=b"503 Service Unavailable")
LOST = answer(b"Internal Server Error", status=b"500 Internal Server Error")
DEAD = answer(b"{}", MARK, b"x-quantile-engine: dead", status=b"503 Service Unavailable")


def says(*pieces: bytes, then: str | None = None):
    """Say these bytes; then close, reset or hang, or go on with the next request."""

    async def script(peer: Peer) -> None:
        for each in pieces:
            await peer.say(each)
            await asyncio.sleep(0.005)
        if then == "hang":
            await peer.gone()
            peer.close()
        elif then is not None:
            getattr(peer, then)()

    return script


def streams(kind: str, n_events: int | None = None, cut: bytes = b"", then: str | None = None):
    whole = events(kind)
    pieces = [HEAD, *map(piece, whole[:n_events])]
    if cut:
        pieces.append(piece(cut))
    if then is None:
        pieces.append(b"0\r\n\r\n")
    return says(*pieces, then=then)


def answers(kind: str = "chat"):
    return says(answer(full_body(answered(kind)), MARK, b"content-type: application/json"))


@pytest.fixture
async def router():
    async with RouterOnAPort(CONFIG) as router:
        router.scripts = {"a": [answers()], "b": [answers()]}
        yield router


@pytest.fixture
async def client(router):
    async with openai.AsyncOpenAI(
        base_url=f"{router.url}/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx.AsyncClient(verify=False, timeout=20),  # loading certificates takes long
    ) as client:
        yield client


async def ask(client, kind: str, *, stream: bool, model: str = "m", **more) -> list[str]:
    """The words of the answer, as they came; what the client raises goes on with them."""
    words: list[str] = []
    try:
        if kind == "chat":
            said = [{"role": "user", "content": "?"}]
            got = await client.chat.completions.create(
                model=model, messages=said, stream=stream, **more
            )
        elif kind == "completion":
            got = await client.completions.create(model=model, prompt="?", stream=stream, **more)
        else:
            got = await client.responses.create(model=model, input="?", stream=stream, **more)
        if not stream:
            return [got.choices[0].message.content if kind == "chat" else got.choices[0].text]
        async for event in got:
            if kind == "response":
                words.append(event.delta)
            else:
                choice = event.choices[0]
                words.append(choice.delta.content if kind == "chat" else choice.text)
    except openai.APIError as error:
        error.words = [word for word in words if word]
        raise
    return [word for word in words if word]


TWICE = [["a"] * n for n in (2, 3, 4)]
"""A kept connection that closes on a request may have been stale: it is replaced once."""
TWICE_THEN_B = [[*each, "b"] for each in TWICE]
CUTS = [
    (b"", "reset"),
    (b"", "close"),
    (b'data: {"id": "r", "object": "chat.comp', "reset"),
    (b"data: [DO", "close"),
    (b"da", "reset"),
    (b"\n", "close"),
]
KINDS = ["chat", "completion", "response"]


class TestBeforeTheFirstByte:
    """Nothing has reached the client: it sees an answer, or one clear error."""

    @pytest.mark.parametrize(
        "fault",
        [
            says(then="reset"),
            says(then="close"),
            says(b"HTTP/1.1 200 OK\r\ncontent-", then="reset"),
            says(LOST),
            says(DEAD),
            says(HEAD, then="reset"),
            says(HEAD, then="close"),
            says(HEAD, b"5\r\n", then="reset"),
            says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n" + MARK + b"\r\n\r\n", then="reset"),
        ],
        ids=[
            *("reset", "close", "half a head", "lost", "dead", "head, reset", "head, close"),
            *("chunk size, reset", "length, reset"),
        ],
    )
    @pytest.mark.parametrize("stream", [True, False])
    async def test_another_replica_of_the_variant_answers(self, router, client, fault, stream):
        router.scripts["a"] = [fault, streams("chat") if stream else answers()]
        words = await ask(client, "chat", stream=stream)
        assert "".join(words).split() == answered("chat").text().split()
        assert router.asked == ["a", "a"]
        assert router.metrics.answers == [("a", "weighted", 200)]

    @pytest.mark.parametrize("fault", [says(then="reset"), says(LOST), says(HEAD, then="reset")])
    async def test_then_a_stand_in(self, router, client, fault):
        router.scripts["a"] = [fault]
        await ask(client, "chat", stream=False)
        assert router.asked in TWICE_THEN_B
        assert router.metrics.answers == [("b", "fallback", 200)]

    @pytest.mark.parametrize("fault", [says(then="reset"), says(LOST), says(HEAD, then="reset")])
    async def test_a_pin_sees_503_with_what_happened(self, router, client, fault):
        router.scripts["a"] = [fault]
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(client, "chat", stream=True, model="m@a")
        assert caught.value.status_code == 503
        assert caught.value.code == "variant_unavailable"
        assert caught.value.response.headers["retry-after"] == "1"
        assert router.asked in TWICE

    async def test_a_hang_ends_at_the_clients_deadline(self, router, client):
        gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def hang(peer: Peer) -> None:
            gone.set_result(await peer.gone())

        router.scripts["a"] = [hang]
        began_s = time.monotonic()
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(client, "chat", stream=True, extra_headers={"x-request-timeout-ms": "200"})
        assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
        assert 0.19 < time.monotonic() - began_s < 2
        assert await asyncio.wait_for(gone, 1) == "reset"
        told = dict(line.split(b": ", 1) for line in router.heads["a"][0].split(b"\r\n")[1:])
        assert 100 < int(told[b"x-request-timeout-ms"]) <= 200

    async def test_openais_client_does_not_ask_again_after_its_deadline(self, router, client):
        router.scripts["a"] = [says(then="hang")]
        with pytest.raises(openai.InternalServerError):
            await ask(
                client.with_options(max_retries=2),
                "chat",
                stream=False,
                extra_headers={"x-request-timeout-ms": "100"},
            )
        assert router.asked == ["a"]

    async def test_a_hang_after_the_head_ends_too(self, router, client):
        router.scripts["a"] = [says(HEAD, then="hang")]
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(client, "chat", stream=True, extra_headers={"x-request-timeout-ms": "200"})
        assert caught.value.code == "deadline_exceeded"

    async def test_retries_share_the_deadline(self, router, client):
        async def late(peer: Peer) -> None:
            await asyncio.sleep(0.05)
            peer.reset()

        router.scripts["a"] = [late]
        router.scripts["b"] = [says(then="hang")]
        began_s = time.monotonic()
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(client, "chat", stream=True, extra_headers={"x-request-timeout-ms": "1000"})
        assert caught.value.code == "deadline_exceeded"
        assert 0.9 < time.monotonic() - began_s < 3
        assert router.asked in TWICE_THEN_B

    async def test_a_storm_of_503_moves_on_and_opens_nothing(self, router, client):
        router.scripts["a"] = [says(REFUSED)]
        for _ in range(30):
            await ask(client, "chat", stream=False)
        assert router.asked == ["a", "b"] * 30
        assert router.metrics.breakers == []

    async def test_a_storm_from_all_is_503_at_once(self, router, client):
        router.scripts = {"a": [says(REFUSED)], "b": [says(REFUSED)]}
        for _ in range(10):
            with pytest.raises(openai.InternalServerError, match="replicas are full") as caught:
                await ask(client, "chat", stream=False)
            assert caught.value.status_code == 503
        assert router.asked == ["a", "b"] * 10

    async def test_a_variant_that_dies_again_and_again_is_left_alone_and_comes_back(
        self, router, client
    ):
        router.configure(**CONFIG, resilience={"breaker": {"open_s": 1.5, "failures_in_a_row": 4}})
        router.scripts["a"] = [says(LOST)]
        for _ in range(10):
            await ask(client, "chat", stream=False)
        assert router.asked == ["a", "a", "b"] * 2 + ["b"] * 8
        with pytest.raises(openai.InternalServerError, match="left alone") as caught:
            await ask(client, "chat", stream=False, model="m@a")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        router.scripts["a"] = [answers()]
        await asyncio.sleep(1.9)
        router.asked.clear()
        await asyncio.gather(*(ask(client, "chat", stream=False) for _ in range(4)))
        await ask(client, "chat", stream=False)
        assert router.asked.count("a") >= 2
        assert [state for _, state in router.metrics.breakers] == ["open", "half_open", "closed"]


class TestInTheStream:
    """Bytes have reached the client: the stream ends in an error that it raises."""

    @pytest.mark.parametrize(("cut", "then"), CUTS)
    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_break_is_an_api_error_after_the_words_that_came(
        self, router, client, kind, cut, then
    ):
        router.scripts["a"] = [streams(kind, 4, cut, then)]
        with pytest.raises(openai.APIError, match="broke off in the middle") as caught:
            await ask(client, kind, stream=True)
        assert caught.value.code == "stream_broken"
        assert not isinstance(caught.value, openai.APIConnectionError)
        assert len(caught.value.words) == (3 if kind == "chat" else 4)
        assert router.asked == ["a"]
        assert router.metrics.broken == ["a"]

    @pytest.mark.parametrize("kind", KINDS)
    async def test_the_deadline(self, router, client, kind):
        router.scripts["a"] = [streams(kind, 4, b"data: {", then="hang")]
        with pytest.raises(openai.APIError, match="time is up") as caught:
            await ask(client, kind, stream=True, extra_headers={"x-request-timeout-ms": "300"})
        assert caught.value.code == "deadline_exceeded"
        assert len(caught.value.words) == (3 if kind == "chat" else 4)
        assert router.metrics.timeouts == [("a", "stream")]
        assert router.metrics.broken == []

    @pytest.mark.parametrize("kind", KINDS)
    async def test_silence(self, router, client, kind):
        router.configure(**CONFIG, resilience={"idle_timeout_ms": 100})
        gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def falls_silent(peer: Peer) -> None:
            await peer.say(HEAD, piece(events(kind)[0]))
            gone.set_result(await peer.gone())

        router.scripts["a"] = [falls_silent]
        with pytest.raises(openai.APIError, match="said nothing for too long") as caught:
            await ask(client, kind, stream=True)
        assert caught.value.code == "stream_idle"
        assert await asyncio.wait_for(gone, 1) == "reset"
        assert router.metrics.broken == ["a"]

    async def test_events_cut_at_every_byte_arrive_whole(self, router, client):
        data = b"".join(events("chat"))
        pieces = [piece(data[at : at + 7]) for at in range(0, len(data), 7)]
        router.scripts["a"] = [says(HEAD, *pieces, b"0\r\n\r\n")]
        words = await ask(client, "chat", stream=True)
        assert "".join(words) == answered("chat").text()

    async def test_another_answer_is_cut_and_the_client_notices(self, router, client):
        whole = answer(full_body(answered("chat")), MARK, b"content-type: application/json")
        router.scripts["a"] = [says(whole[:-20], then="reset")]
        with pytest.raises(openai.APIConnectionError):
            await ask(client, "chat", stream=False)
        assert router.metrics.broken == ["a"]

    async def test_a_client_that_does_not_read_is_not_taken_for_a_silent_variant(self, router):
        router.configure(**CONFIG, resilience={"idle_timeout_ms": 100})
        big = b"data: " + b"x" * 60_000 + b"\n\n"
        n_events = 200  # 12 MB: more than all buffers on the way
        router.scripts["a"] = [says(HEAD, *[piece(big)] * n_events, b"0\r\n\r\n")]
        async with httpx.AsyncClient(base_url=router.url) as client:
            body = {"model": "m", "stream": True}
            async with client.stream("POST", "/v1/completions", json=body) as got:
                await asyncio.sleep(2.0)
                size = 0
                async for part in got.aiter_bytes():
                    size += len(part)
        assert size == n_events * len(big)
        assert router.metrics.broken == []
