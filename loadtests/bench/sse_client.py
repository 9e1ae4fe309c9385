"""The client whose CPU is measured: streams in parallel through our SSE client.

Run it under gevent, as Locust does: `python -m gevent.monkey --module loadtests.bench.sse_client
URL STREAMS SECONDS TOKENS` prints one JSON object. Threads are then greenlets.
"""

import gc
import sys
import threading
import time

import msgspec

from loadtests.drive.client import HttpTarget
from loadtests.drive.outcome import Arrival
from loadtests.records.record import RequestRecord
from serve_app.domain.errors import InvalidRunError


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the client process used and saw."""

    cpu_s: float
    wall_s: float
    record_us: float
    """CPU time that reading one finished stream took, on average."""
    records: tuple[RequestRecord, ...]
    """`session` is the `user` that the mock logs."""


class Load:
    """Users that ask again once they have their answer, for some time."""

    def __init__(self, base_url: str, n_streams: int, duration_s: float, n_tokens: int) -> None:
        self._target = HttpTarget(base_url)
        self._n_streams = n_streams
        self._duration_s = duration_s
        self._n_tokens = n_tokens
        self._records: list[RequestRecord] = []
        self._reading_s = 0.0

    def run(self) -> Measured:
        """Raises InvalidRunError if a request failed."""
        gc.freeze()
        start_s, cpu_start_s = time.monotonic(), time.process_time()
        users = [threading.Thread(target=self._user, args=(n,)) for n in range(self._n_streams)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        failed = [record for record in self._records if record.error is not None]
        if failed:
            raise InvalidRunError(f"{len(failed)} requests failed, the first: {failed[0]}")
        return Measured(
            cpu_s=time.process_time() - cpu_start_s,
            wall_s=time.monotonic() - start_s,
            record_us=self._reading_s / len(self._records) * 1e6,
            records=tuple(self._records),
        )

    def _user(self, number: int) -> None:
        start_s = time.monotonic()
        time.sleep(number / self._n_streams * 0.1)  # not all tokens at the same instant
        turn = 0
        while time.monotonic() - start_s < self._duration_s:
            name = f"{number}-{turn}"
            exchange = self._target.exchange(self._request(name), timeout_s=60)
            arrival = Arrival(
                cell=0,
                index=turn,
                worker=0,
                variant="a",
                phase="measured",
                t_sched_ns=exchange.t_send_ns,
                max_tokens=self._n_tokens,
                session=name,
            )
            reading_s = time.thread_time()
            self._records.append(arrival.record(exchange, start_ns=0))
            self._reading_s += time.thread_time() - reading_s
            turn += 1

    def _request(self, name: str) -> bytes:
        body = {
            "model": "m@a",
            "user": name,
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": self._n_tokens,
        }
        return self._target.request("POST", "/v1/chat/completions", msgspec.json.encode(body))


def main(argv: list[str]) -> None:
    """Run the load and print what was measured."""
    base_url, n_streams, duration_s, n_tokens = argv
    load = Load(base_url, int(n_streams), float(duration_s), int(n_tokens))
    sys.stdout.write(msgspec.json.encode(load.run()).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
