"""CPU per streamed token of the SSE client's process, and how true its times are.

`make bench-load` on two quiet cores: 14.1 us/token (13.5-15.1) at 50 streams, 12.0 at 150.
"""

import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtests.bench.mock import mock_engine
from loadtests.bench.mock_server import SentStream
from loadtests.bench.sse_client import Measured
from loadtests.records.record import RequestRecord
from serve_app.domain.errors import InvalidRunError
from serve_app.domain.units import NS_PER_MS

BUDGET_US = 25.0
"""CPU microseconds per token, the events of the stream that carry none included."""
ZERO_GAP_US = 200
"""Tokens closer than this were read in one piece, although they were sent one by one."""


@dataclass(frozen=True)
class SseRound:
    """One round of one number of streams."""

    cpu_us: float
    """Per token."""
    record_us: float
    """Per finished stream; it is part of `cpu_us`."""
    tokens_per_s: float
    zero_gap_share: float
    ttft_error_ms: float
    """P50 of |TTFT - truth|, the truth being the server's own stamps."""


def run_round(n_streams: int, duration_s: float, n_tokens: int) -> SseRound:
    """Stream from a mock of its own. Raises InvalidRunError if a request failed."""
    with (
        tempfile.TemporaryDirectory() as name,
        mock_engine(Path(name), ttft_ms=50, itl_ms=10) as mock,
    ):
        words = [mock.base_url, str(n_streams), str(duration_s), str(n_tokens)]
        command = [sys.executable, "-m", "gevent.monkey", "--module"]
        command += ["loadtests.bench.sse_client", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise InvalidRunError(f"the client ended with status {done.returncode}: see above")
        sent = mock.close()
    measured = msgspec.json.decode(done.stdout, type=Measured)
    return _judge(measured, sent)


def _judge(measured: Measured, sent: list[SentStream]) -> SseRound:
    truth = {stream.user: stream for stream in sent}
    n_tokens = sum(len(record.event_us) for record in measured.records)
    gaps = [gap for record in measured.records for gap in gaps_us(record)]
    errors = [ttft_error_ms(record, truth[record.session or ""]) for record in measured.records]
    return SseRound(
        cpu_us=measured.cpu_s / n_tokens * 1e6,
        record_us=measured.record_us,
        tokens_per_s=n_tokens / measured.wall_s,
        zero_gap_share=sum(gap < ZERO_GAP_US for gap in gaps) / len(gaps),
        ttft_error_ms=statistics.median(errors),
    )


def gaps_us(record: RequestRecord) -> list[int]:
    """Microseconds between tokens that follow each other."""
    return [b - a for a, b in zip(record.event_us, record.event_us[1:], strict=False)]


def ttft_error_ms(record: RequestRecord, sent: SentStream) -> float:
    """|TTFT - truth| in milliseconds. The truth starts when the server had the request."""
    assert record.t_first_ns is not None
    assert record.t_send_ns is not None
    truth_ns = sent.token_ns[0] - sent.received_ns
    return abs(record.t_first_ns - record.t_send_ns - truth_ns) / NS_PER_MS


def bench(streams: list[int], rounds: int, duration_s: float, n_tokens: int) -> bool:
    """Print a table; whether the budget is kept at every number of streams."""
    print(
        f"{'streams':>8}{'CPU us/token':>14}{'spread':>14}{'us/record':>11}{'tokens/s':>10}"
        f"{'gaps < 0.2 ms':>15}{'|TTFT - truth| ms':>19}"
    )
    is_kept = True
    for n_streams in streams:
        runs = []
        for number in range(rounds):
            print(f"{n_streams} streams, round {number + 1} of {rounds}", file=sys.stderr)
            runs.append(run_round(n_streams, duration_s, n_tokens))
        costs = [run.cpu_us for run in runs]
        cost = statistics.mean(costs)
        is_kept &= cost <= BUDGET_US
        spread = f"{min(costs):.1f}-{max(costs):.1f}"
        print(
            f"{n_streams:>8}{cost:>14.1f}{spread:>14}"
            f"{statistics.mean(run.record_us for run in runs):>11.0f}"
            f"{statistics.mean(run.tokens_per_s for run in runs):>10.0f}"
            f"{statistics.mean(run.zero_gap_share for run in runs):>15.2%}"
            f"{statistics.mean(run.ttft_error_ms for run in runs):>19.2f}"
        )
    print(f"{'PASS' if is_kept else 'FAIL'}: the budget is {BUDGET_US:g} us per token")
    return is_kept
