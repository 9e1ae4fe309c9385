"""The event loop of the processes around the relay: the cheapest that is installed."""

import asyncio


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, which Ray brings, or asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
