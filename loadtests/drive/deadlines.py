"""Ends exchanges that are out of time, without a timer per read.

A time limit on the socket would start and stop a timer at every piece of a stream, a fifth of the
client's work under gevent. Here one thread (under gevent: one greenlet) sleeps until the next
deadline and shuts that socket down, so that whoever reads it wakes.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from heapq import heappop, heappush

from serve_app.domain.units import NS_PER_S


class Watch:
    """A socket with a deadline, until it is released."""

    __slots__ = ("is_expired", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock: socket.socket | None = sock
        self.is_expired = False


class Deadlines:
    """Watches any number of sockets. Safe to use from any thread or greenlet."""

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock_ns = clock_ns
        self._changed = threading.Condition()
        self._heap: list[tuple[int, int, Watch]] = []
        self._n_watched = 0
        self._wakes_ns: int | None = None
        self._thread: threading.Thread | None = None

    def watch(self, sock: socket.socket, deadline_ns: int) -> Watch:
        """Shut `sock` down at `deadline_ns`, unless it is released before."""
        watch = Watch(sock)
        with self._changed:
            self._drop_released()
            self._n_watched += 1
            heappush(self._heap, (deadline_ns, self._n_watched, watch))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            elif self._wakes_ns is None or deadline_ns < self._wakes_ns:
                self._changed.notify()
        return watch

    def release(self, watch: Watch) -> None:
        """From now on the socket is left alone; `watch.is_expired` is final."""
        with self._changed:
            watch.sock = None

    def close(self) -> None:
        """End the thread; the next `watch` starts another. Nothing may be watched now."""
        with self._changed:
            self._thread = None
            self._changed.notify_all()

    def _drop_released(self) -> None:
        while self._heap and self._heap[0][2].sock is None:
            heappop(self._heap)

    def _run(self) -> None:
        with self._changed:
            while self._thread is threading.current_thread():
                self._drop_released()
                now_ns = self._clock_ns()
                while self._heap and self._heap[0][0] <= now_ns:
                    _expire(heappop(self._heap)[2])
                self._wakes_ns = self._heap[0][0] if self._heap else None
                wait_ns = None if self._wakes_ns is None else self._wakes_ns - now_ns
                self._changed.wait(None if wait_ns is None else wait_ns / NS_PER_S)


def _expire(watch: Watch) -> None:
    if watch.sock is not None:
        watch.is_expired = True
        with contextlib.suppress(OSError):  # the peer was faster
            # not SSLSocket's: that would take the session away under its reader
            socket.socket.shutdown(watch.sock, socket.SHUT_RDWR)
