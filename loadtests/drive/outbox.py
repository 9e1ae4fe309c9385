"""What a worker has to tell: records gathered into reports."""

from collections.abc import Callable

import msgspec

from loadtests.drive.messages import Report
from loadtests.records.record import ErrorClass, RequestRecord
from serve_app.domain.units import NS_PER_MS

NO_SERVER = frozenset({ErrorClass.CONNECT, ErrorClass.CLOSED})
NEVER_TRIED = frozenset({ErrorClass.REFUSED_BY_CLIENT, ErrorClass.UNFINISHED})
"""These say nothing about whether there is a server."""


class Outbox:
    """Gathers records until the next report; `watch` sees each of them."""

    def __init__(self, watch: Callable[[RequestRecord], None]) -> None:
        self._watch = watch
        self._encoder = msgspec.json.Encoder()
        self._clear()

    def _clear(self) -> None:
        self._lines: list[bytes] = []
        self._n_failed = 0
        self._found_server = False
        self._n_unreached = 0
        self._ttft_ms: list[float] = []

    def add(self, record: RequestRecord) -> None:
        """Take one record."""
        self._lines.append(self._encoder.encode(record) + b"\n")
        self._n_failed += record.error is not None
        if record.error in NO_SERVER:
            self._n_unreached += 1
        elif record.error not in NEVER_TRIED:
            self._found_server, self._n_unreached = True, 0
        if record.error is None and record.t_first_ns is not None:
            self._ttft_ms.append((record.t_first_ns - record.t_sched_ns) / NS_PER_MS)
        self._watch(record)

    def report(self, in_flight: int) -> Report:
        """What came since the last report."""
        report = Report(
            lines=b"".join(self._lines),
            n_over=len(self._lines),
            n_failed=self._n_failed,
            in_flight=in_flight,
            found_server=self._found_server,
            n_unreached=self._n_unreached,
            ttft_ms=tuple(self._ttft_ms),
        )
        self._clear()
        return report
