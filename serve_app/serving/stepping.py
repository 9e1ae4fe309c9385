"""What is left of a coroutine whose first step was run where it was made: a task takes it over.

An ASGI `send()` hardly ever waits: it does so only when the client is slower than the stream.
Stepped from the callback that brought the bytes, it costs no wake-up of the request's task, which
is a quarter of the relay's CPU per token (`serve_app/decisions/0002-relay.md`).
"""

from collections.abc import Coroutine, Generator
from typing import Any


class Suspended:
    """A coroutine that has begun and now waits: await it, in a task, for the rest."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def close(self) -> None:
        """End the coroutine where it waits."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        """Pass on, between task and coroutine, what each has for the other."""
        waits_for = self._waits_for
        while True:
            try:
                try:
                    value = yield waits_for
                except BaseException as error:
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(value)
            except StopIteration:
                return
