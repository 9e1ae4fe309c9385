"""Admission over real sockets: what clients that are slow, greedy, unknown or honest are told."""

import asyncio
import json
import time
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import openai
import pytest

from serve_app.config.admission import AdmissionConfig
from serve_app.domain.errors import RateLimitError
from serve_app.routing.admission import TokensNeed
from serve_app.serving.admission import Admission
from serve_app.telemetry.admission_counts import AdmissionCounts
from tests.fakes.admission import asks, key_of, tenant_entry, write_tenants
from tests.fakes.raw_server import Peer, answer
from tests.fakes.router_on_a_port import RouterOnAPort

LIMIT = 100_000
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
WHOLE = json.dumps({"ok": True, "usage": USAGE}).encode()
CHAT = "/v1/chat/completions"


async def at_once(peer: Peer) -> None:
    await peer.say(answer(WHOLE, b"x-variant: a\r\ncontent-type: application/json"))


@asynccontextmanager
async def router(**admission: Any):
    """The router with two variants, whose answers come at once."""
    config = {"split": {"a": 10_000, "b": 0}, "admission": admission}
    on_port = RouterOnAPort(config, max_body_bytes=LIMIT)
    on_port.scripts = {"a": [at_once], "b": [at_once]}
    async with on_port:
        yield on_port


class Raw:
    """A client that says bytes."""

    def __init__(self, reader, writer) -> None:
        self.reader, self.writer = reader, writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.strip().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(status.split()[1]), headers, json.loads(body)

    async def is_closed(self) -> bool:
        """Whether the server ends the connection, with nothing more to say."""
        with suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(), 5) == b""
        return True


async def connect(server: RouterOnAPort):
    return await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))


@asynccontextmanager
async def raw(server):
    reader, writer = await connect(server)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def head(*lines: str) -> bytes:
    return "\r\n".join([f"POST {CHAT} HTTP/1.1", "host: x", *lines, "", ""]).encode()


def is_openais(body: Any) -> bool:
    return set(body["error"]) == {"message", "type", "param", "code"}


async def chat(client: httpx.AsyncClient, key: str | None = None, **body: Any) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key_of(key)}"}
    return await client.post(CHAT, json={"model": "m", **body}, headers=headers)


TIMES = {"body": {"piece_timeout_s": 0.2, "timeout_s": 0.6}}


class TestSlowBodies:
    async def heard_408(self, client: Raw) -> None:
        status, headers, body = await client.answer()
        assert (status, body["error"]["code"]) == (408, "request_timeout")
        assert headers["connection"] == "close"
        assert is_openais(body)
        assert await client.is_closed()

    @pytest.mark.parametrize(
        "sent",
        [
            head("content-length: 100"),
            head("content-length: 100") + b'{"model"',
            head("transfer-encoding: chunked"),
            head("transfer-encoding: chunked") + b'8\r\n{"model"\r\n',
        ],
    )
    async def test_a_body_that_stops(self, sent):
        async with router(**TIMES) as server, raw(server) as client:
            began_s = time.monotonic()
            client.say(sent)
            await self.heard_408(client)
            assert 0.15 < time.monotonic() - began_s < 3

    async def test_a_body_that_trickles_without_end(self):
        async with router(**TIMES) as server, raw(server) as client:
            client.say(head("content-length: 1000"))

            async def trickle() -> None:
                while True:
                    client.say(b" ")
                    await asyncio.sleep(0.02)

            drip = asyncio.ensure_future(trickle())
            await self.heard_408(client)
            drip.cancel()
            assert server.asked == []

    async def test_one_that_is_slow_and_whole_is_served(self):
        async with router(**TIMES) as server, raw(server) as client:
            body = b'{"model": "m"}'
            client.say(head(f"content-length: {len(body)}"))
            for at in range(0, len(body), 5):
                await asyncio.sleep(0.1)
                client.say(body[at : at + 5])
            assert (await client.answer())[0] == 200

    async def test_of_too_many_the_one_awaited_longest_is_given_up(self):
        async with router(body={"max_pending": 3}) as server, raw(server) as oldest:
            oldest.say(head("content-length: 100") + b"{")
            await asyncio.sleep(0.05)
            others = [await connect(server) for _ in range(3)]
            for _, writer in others:
                writer.write(head("content-length: 100") + b"{")
            await self.heard_408(oldest)
            async with httpx.AsyncClient(base_url=server.url) as client:
                assert (await chat(client)).status_code == 200
            heard = [reader.at_eof() or bool(reader._buffer) for reader, _ in others]
            assert heard.count(True) == 1, "the request that was served took the oldest's place"
            for _, writer in others:
                writer.close()

    async def test_they_take_no_place_of_others(self):
        async with router(max_in_flight=1, max_waiting=0) as server:
            clients = [await connect(server) for _ in range(50)]
            for _, writer in clients:
                writer.write(head("content-length: 100") + b"{")
            async with httpx.AsyncClient(base_url=server.url) as client:
                assert (await chat(client)).status_code == 200
            for _, writer in clients:
                writer.close()


class TestSizes:
    async def test_a_body_without_end(self):
        async with router() as server, raw(server) as client:
            client.say(head("transfer-encoding: chunked"))
            chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
            sent = 0

            async def pour() -> None:
                nonlocal sent
                with suppress(ConnectionError):
                    while True:
                        client.say(chunk)
                        await client.writer.drain()
                        sent += len(chunk)

            flood = asyncio.ensure_future(pour())
            status, headers, body = await client.answer()
            assert (status, body["error"]["code"]) == (413, "body_too_large")
            assert headers["connection"] == "close"
            await asyncio.wait_for(flood, 5)
            assert sent < 200 * LIMIT

    async def test_a_large_body_that_is_read_to_its_end_leaves_the_connection_open(self):
        async with router() as server, raw(server) as client:
            client.say(head(f"content-length: {2 * LIMIT}") + b"x" * 2 * LIMIT)
            assert (await client.answer())[0] == 413
            client.say(head("content-length: 14") + b'{"model": "m"}')
            assert (await client.answer())[0] == 200

    @pytest.mark.parametrize(
        "lines",
        [[f"x-{number}: 1" for number in range(120)], ["x-large: " + "a" * 17_000]],
        ids=["count", "bytes"],
    )
    async def test_a_flood_of_headers(self, lines):
        async with router() as server, raw(server) as client:
            client.say(head("content-length: 14", *lines) + b'{"model": "m"}')
            status, _, body = await client.answer()
            assert (status, body["error"]["code"]) == (431, "headers_too_large")
            assert is_openais(body)
            assert server.asked == []


class TestKeys:
    async def test_as_openais_client_understands_it(self, tmp_path):
        file = write_tenants(
            tmp_path / "keys",
            acme={"variants": ["a"]},
            slow={"requests_per_minute": 60, "burst": 1},
            poor={"tokens_per_day": 100},
        )
        sent: list[httpx.Request] = []
        async with router(keys_file=str(file)) as server:

            async def count(request: httpx.Request) -> None:
                sent.append(request)

            def ask(key: str, model: str = "m", **more: Any) -> Any:
                client = openai.AsyncOpenAI(
                    base_url=f"{server.url}/v1",
                    api_key=key,
                    max_retries=more.pop("retries", 0),
                    http_client=httpx.AsyncClient(event_hooks={"request": [count]}),
                )
                message = [{"role": "user", "content": "?"}]
                return client.chat.completions.create(model=model, messages=message, **more)

            await ask(key_of("acme"))
            with pytest.raises(openai.AuthenticationError) as unknown:
                await ask("sk-wrong")
            assert unknown.value.code == "invalid_api_key"
            assert unknown.value.response.headers["www-authenticate"].startswith("Bearer")
            with pytest.raises(openai.PermissionDeniedError) as forbidden:
                await ask(key_of("acme"), "m@b")
            assert forbidden.value.code == "model_not_found"
            await ask(key_of("slow"))
            with pytest.raises(openai.RateLimitError) as limited:
                await ask(key_of("slow"))
            assert (limited.value.code, limited.value.type) == ("rate_limit_exceeded", "requests")
            assert limited.value.response.headers["retry-after"] == "1"
            await ask(key_of("slow"), retries=1)  # it waits as long as it is told, and is served
            await ask(key_of("poor"), max_tokens=10)
            sent.clear()
            with pytest.raises(openai.RateLimitError) as spent:
                await ask(key_of("poor"), max_tokens=75, retries=3)
            assert (spent.value.code, spent.value.type) == ("insufficient_quota",) * 2
            assert len(sent) == 1, "it is told that trying again is of no use"
        assert set(server.asked) == {"a"}

    async def test_a_key_never_reaches_a_variant(self, tmp_path):
        file = write_tenants(tmp_path / "keys", acme={})
        async with (
            router(keys_file=str(file)) as server,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            assert (await chat(client, "acme")).status_code == 200
            (seen,) = server.heads["a"]
            assert b"authorization" not in seen.lower()
            assert key_of("acme").encode() not in seen

    async def test_reloaded_as_kubernetes_replaces_a_secret(self, tmp_path):
        for version, owner in (("v1", "old"), ("v2", "new")):
            (tmp_path / version).mkdir()
            entry = tenant_entry(owner)
            write_tenants(tmp_path / version / "keys.yaml", acme=entry)
        data, path = tmp_path / "..data", tmp_path / "keys.yaml"
        data.symlink_to("v1")
        path.symlink_to("..data/keys.yaml")
        async with (
            router(keys_file=str(path)) as server,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            assert (await chat(client, "old")).status_code == 200
            assert (await chat(client, "new")).status_code == 401
            (tmp_path / "..data_tmp").symlink_to("v2")
            (tmp_path / "..data_tmp").rename(data)
            swapped_s = time.monotonic()
            while (await chat(client, "new")).status_code != 200:
                assert time.monotonic() - swapped_s < 5
                await asyncio.sleep(0.02)
            assert time.monotonic() - swapped_s < 3
            assert (await chat(client, "old")).status_code == 401

    async def test_limits_are_told_with_every_answer(self, tmp_path):
        limits = {"requests_per_minute": 60, "burst": 5, "tokens_per_minute": 6000}
        file = write_tenants(tmp_path / "keys", acme=limits)
        async with (
            router(keys_file=str(file)) as server,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            told = (await chat(client, "acme", max_tokens=100)).headers
            assert told["x-ratelimit-limit-requests"] == "60"
            assert told["x-ratelimit-remaining-requests"] == "4"
            assert told["x-ratelimit-limit-tokens"] == "6000"
            assert 5880 <= int(told["x-ratelimit-remaining-tokens"]) <= 5900
            assert told["x-ratelimit-reset-tokens"] in {"1s", "2s"}
            after = (await chat(client, "acme", max_tokens=100)).headers
            left = int(after["x-ratelimit-remaining-tokens"])
            assert 5860 <= left <= 5900, "the first cost its 12 tokens, not the 100 reserved"


class TestPlaces:
    async def test_full_waits_then_is_refused_with_the_time_to_come_again(self):
        has_begun, may_end = asyncio.Event(), asyncio.Event()

        async def slowly(peer: Peer) -> None:
            has_begun.set()
            await may_end.wait()
            await at_once(peer)

        async with router(max_in_flight=1, max_waiting=1, max_wait_s=0.3) as server:
            server.scripts["a"] = [slowly]
            async with httpx.AsyncClient(base_url=server.url) as client:
                first = asyncio.ensure_future(chat(client))
                await has_begun.wait()
                late, crowded = await asyncio.gather(chat(client), chat(client))
                for refused in (late, crowded):
                    assert refused.status_code == 429
                    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
                    assert int(refused.headers["retry-after"]) >= 1
                patient = asyncio.ensure_future(chat(client))
                await asyncio.sleep(0.05)
                may_end.set()
                assert [(await each).status_code for each in (first, patient)] == [200, 200]
                assert server.asked == ["a", "a"]

    async def test_limits_change_live(self):
        async with router() as server, httpx.AsyncClient(base_url=server.url) as client:
            assert (await chat(client)).status_code == 200
            limits = {"anonymous_limits": {"requests_per_minute": 1, "burst": 1}}
            server.configure(**{**server.user_config, "admission": limits})
            found = [(await chat(client)).status_code for _ in range(3)]
            assert found == [200, 429, 429]
            server.configure(**server.user_config)
            assert (await chat(client)).status_code == 200


async def test_everything_is_counted_through_ray(tmp_path):
    pytest.importorskip("ray", reason="the router counts through Ray Serve's metrics")
    from serve_app.telemetry.metrics import ServeAdmissionMetrics

    told = []

    class Told(ServeAdmissionMetrics):
        def report(self, counts: AdmissionCounts) -> None:
            super().report(counts)
            told.append(counts)

    file = write_tenants(tmp_path / "keys", acme={"tokens_per_minute": 100})
    admission = Admission(metrics=Told(), environ={})
    admission.configure(AdmissionConfig(keys_file=str(file), max_in_flight=1, max_wait_s=0.01))
    ticket = await admission.admit(asks("acme"))
    for need in (TokensNeed(0, 0), TokensNeed(500, 0)):
        with pytest.raises(RateLimitError):
            await admission.admit(asks("acme"), need)
    ticket.settle(0, 7)
    ticket.release()
    admission.close()
    (counts,) = told
    assert counts.rejected == {("acme", "saturated"): 1, ("acme", "larger_than_budget"): 1}
    assert (counts.requests, counts.tokens) == ({"acme": 1}, {("acme", "completion"): 7})
    assert len(counts.waits_s) == 1
