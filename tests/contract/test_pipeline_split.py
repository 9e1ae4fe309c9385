"""The split check over real sockets: whatever the server does is an answer or a fault."""

import asyncio

import pytest

from serve_app.pipeline.split_check import http_ask
from tests.fakes.raw_server import RawServer

HEAD = b"HTTP/1.1 %s\r\ncontent-length: %d\r\nx-variant: int8\r\nx-route-reason: sticky\r\n\r\n"


async def asked(*pieces: bytes):
    async def talk(peer):
        await peer.request()
        await peer.say(*pieces)
        peer.close()

    async with RawServer(talk) as server:
        ask = http_ask(f"http://127.0.0.1:{server.port}/v1", "m", 4)
        return await asyncio.to_thread(ask, "s1", "Hello"), server.requests


async def test_an_answer_names_its_variant_and_the_session_is_sent():
    found, (request,) = await asked(HEAD % (b"200 OK", 2), b"{}")
    assert (found.variant, found.reason, found.fault) == ("int8", "sticky", "")
    assert b"x-session-id: s1" in request.lower()


@pytest.mark.parametrize(
    ("pieces", "fault"),
    [
        ((HEAD % (b"200 OK", 10), b"cut"), "IncompleteRead"),
        ((HEAD % (b"503 Busy", 10), b"cut"), "IncompleteRead"),
        ((HEAD % (b"503 Busy", 4), b"busy"), "HTTP 503: b'busy'"),
        ((b"this is no HTTP\r\n\r\n",), "this is no HTTP"),
        ((), "closed connection without response"),
    ],
)
async def test_what_is_no_whole_answer_is_a_fault_of_that_request(pieces, fault):
    found, _ = await asked(*pieces)
    assert found.variant is None and fault in found.fault
