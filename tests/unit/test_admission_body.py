"""Reading a body: its size and its time, from messages that a test hands over."""

import asyncio

import pytest

from serve_app.domain.errors import BodyTooLargeError, SlowBodyError
from serve_app.serving.body_times import BodyDeadline, BodyTimes, PendingBodies
from serve_app.serving.http import ClientGoneError, read_body

LIMIT = 100
SILENCE = object()
GONE = object()


def receiver(*pieces):
    """Messages with these pieces, the last one the body's end; or silence; or a client that left.

    A number is a pause in seconds.
    """
    left = list(pieces)

    async def receive():
        if left and isinstance(left[0], float):
            await asyncio.sleep(left.pop(0))
        if left and left[0] is GONE:
            return {"type": "http.disconnect"}
        if not left or left[0] is SILENCE:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return receive


async def read(*pieces, length=None, **times):
    headers = [] if length is None else [(b"content-length", length)]
    return await read_body({"headers": headers}, receiver(*pieces), LIMIT, BodyTimes(**times))


@pytest.mark.parametrize("pieces", [[b""], [b"ab"], [b"a", b"b"], [b"", b"a", b"", b"b", b""]])
async def test_whole(pieces):
    assert await read(*pieces) == b"".join(pieces)


async def test_as_long_as_allowed():
    assert await read(b"x" * 60, b"x" * 40, length=b"100") == b"x" * 100


async def test_a_million_small_pieces_are_one_body():
    assert await read(*[b"x"] * LIMIT) == b"x" * LIMIT


@pytest.mark.parametrize(
    ("length", "told"),
    [(b"101", "101 bytes"), (b"9" * 18, "9" * 18), (b"9" * 5000, "more than 100"), (None, "than")],
)
async def test_too_long(length, told):
    with pytest.raises(BodyTooLargeError, match=told) as refused:
        await read(b"x" * 101, length=length)
    assert refused.value.response_headers == ()


@pytest.mark.parametrize("length", [b"", b"-1", b"abc", b"\xb2", b"1e9"])
async def test_a_length_that_is_none_says_nothing(length):
    assert await read(b"x", length=length) == b"x"


async def test_what_does_not_end_is_not_read_to_its_end():
    taken = 0

    async def receive():
        nonlocal taken
        taken += 50
        return {"type": "http.request", "body": b"x" * 50, "more_body": True}

    with pytest.raises(BodyTooLargeError) as refused:
        await read_body({"headers": []}, receive, LIMIT)
    assert taken == 850
    assert refused.value.response_headers == ((b"connection", b"close"),)


async def test_a_client_that_leaves():
    with pytest.raises(ClientGoneError):
        await read(b"x", GONE)


@pytest.mark.parametrize("pieces", [[SILENCE], [b"x", SILENCE], [b"x", 0.005, b"x", SILENCE]])
async def test_a_piece_that_does_not_come(pieces):
    with pytest.raises(SlowBodyError, match=r"0\.02 s for each piece and without end"):
        await read(*pieces, piece_s=0.02)


async def test_a_whole_that_takes_too_long():
    drips = [part for _ in range(100) for part in (0.005, b"x")]
    with pytest.raises(SlowBodyError, match="without end for each piece"):
        await read(*drips, whole_s=0.05)
    with pytest.raises(SlowBodyError):
        await read(*drips, whole_s=0.05, piece_s=0.04)


async def test_slow_pieces_within_their_time():
    assert await read(b"a", 0.01, b"b", 0.01, b"c", piece_s=2.0, whole_s=5.0) == b"abc"


async def test_one_that_is_too_large_and_stops_is_too_large():
    with pytest.raises(BodyTooLargeError) as refused:
        await read(b"x" * 101, SILENCE, piece_s=0.01)
    assert refused.value.response_headers == ((b"connection", b"close"),)


async def test_of_many_the_oldest_is_given_up():
    pending = PendingBodies(2)
    tasks = [asyncio.ensure_future(read(b"x", SILENCE, pending=pending)) for _ in range(2)]
    await asyncio.sleep(0)
    assert len(pending) == 2
    assert await read(b"ab", pending=pending) == b"ab"
    with pytest.raises(SlowBodyError, match="more than 2 bodies"):
        await tasks[0]
    assert len(pending) == 1
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    assert len(pending) == 0


async def test_one_that_is_ending_may_be_given_up_too():
    pending, loop = PendingBodies(1), asyncio.get_running_loop()
    added = []

    def newcomer() -> None:
        pending.add(BodyDeadline(BodyTimes()))
        added.append(True)

    ends = asyncio.ensure_future(read(SILENCE, piece_s=0.001, pending=pending))
    await asyncio.sleep(0)
    loop.call_later(0.002, newcomer)
    busy_until_s = loop.time() + 0.003
    while loop.time() < busy_until_s:
        pass  # so that both happen in the same turn of the loop
    with pytest.raises(SlowBodyError):
        await ends
    assert added == [True]


async def test_one_that_is_given_up_stays_so_whatever_comes():
    pending = PendingBodies(1)
    pieces = [part for _ in range(200) for part in (0.001, b"x")]
    trickles = asyncio.ensure_future(read(*pieces[:100], piece_s=5.0, pending=pending))
    await asyncio.sleep(0.01)
    assert await read(b"ab", pending=pending) == b"ab"
    with pytest.raises(SlowBodyError):
        await trickles
