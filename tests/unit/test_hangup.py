"""A client that left is told to the application by the message that ASGI has for it."""

import asyncio

import pytest

from serve_app.serving.hangup import serve_until_hangup
from tests.fakes.asgi import Exchange


def over_hangup(app, grace_s: float = 5.0):
    async def served(scope, receive, send) -> None:
        await serve_until_hangup(app, scope, receive, send, grace_s=grace_s)

    return served


async def answer(send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


async def settled() -> list[asyncio.Task]:
    """Other tasks than the test's that are left over."""
    for _ in range(5):
        await asyncio.sleep(0)
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def cancelled(task: asyncio.Task) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nothing_changes_for_a_client_that_stays():
    async def app(scope, receive, send) -> None:
        assert scope["path"] == "/x"
        assert (await receive())["body"] == b"a"
        assert (await receive())["body"] == b"b"
        await answer(send)

    exchange = await Exchange(over_hangup(app), "POST", "/x", pieces=[b"a", b"b"])()
    assert exchange.body == b"done"
    assert await settled() == []


async def test_a_handler_that_ignores_cancellation_hears_of_the_disconnect():
    """As vLLM's: the handler only awaits `http.disconnect`, its generation runs beside it."""
    heard, generation = [], []

    async def generate() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            generation.append("aborted")
            raise

    async def app(scope, receive, send) -> None:
        await receive()
        running = asyncio.ensure_future(generate())
        while (message := await receive())["type"] != "http.disconnect":
            pass
        heard.append(message["type"])
        running.cancel()
        await asyncio.wait({running})

    exchange = Exchange(over_hangup(app), "POST", "/x")
    task = exchange.start()
    await settled()
    await cancelled(task)
    assert (heard, generation) == (["http.disconnect"], ["aborted"])
    assert await settled() == []


async def test_the_disconnect_is_heard_by_every_later_receive_too():
    heard = []

    async def app(scope, receive, send) -> None:
        await receive()
        for _ in range(3):
            heard.append((await receive())["type"])

    task = Exchange(over_hangup(app), "POST", "/x").start()
    await settled()
    await cancelled(task)
    assert heard == ["http.disconnect"] * 3


async def test_a_handler_that_listens_to_nothing_is_cancelled_after_the_grace():
    ended = []

    async def app(scope, receive, send) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(asyncio.get_running_loop().time())

    task = Exchange(over_hangup(app, grace_s=0.05), "POST", "/x").start()
    await settled()
    hung_up = asyncio.get_running_loop().time()
    await cancelled(task)
    assert len(ended) == 1
    assert 0.04 < ended[0] - hung_up < 1
    assert await settled() == []


async def test_a_second_cancellation_does_not_wait_for_the_grace():
    ended = []

    async def app(scope, receive, send) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    task = Exchange(over_hangup(app, grace_s=3600), "POST", "/x").start()
    await settled()
    task.cancel()
    await settled()
    assert not task.done()
    await cancelled(task)
    await settled()
    assert ended == [True]


async def test_the_handlers_own_error_is_passed_on():
    async def app(scope, receive, send) -> None:
        raise ValueError("of the handler")

    with pytest.raises(ValueError, match="of the handler"):
        await Exchange(over_hangup(app), "POST", "/x")()


async def test_an_error_after_the_hangup_stays_a_cancellation():
    async def app(scope, receive, send) -> None:
        await receive()
        await receive()
        raise OSError("nobody to send to")

    task = Exchange(over_hangup(app), "POST", "/x").start()
    await settled()
    await cancelled(task)


async def test_a_receive_that_is_given_up_leaves_nothing_behind():
    """Starlette's streams listen for the disconnect beside the stream, and stop when that ends."""
    waiting = []

    async def app(scope, receive, send) -> None:
        await receive()
        listener = asyncio.ensure_future(receive())
        await settled()
        listener.cancel()
        await answer(send)

    class Recorded(Exchange):
        async def receive(self):
            waiting.append("started")
            try:
                return await super().receive()
            finally:
                waiting.append("ended")

    exchange = await Recorded(over_hangup(app), "POST", "/x")()
    assert exchange.body == b"done"
    assert await settled() == []
    assert waiting.count("started") == waiting.count("ended")
