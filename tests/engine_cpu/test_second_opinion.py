"""`vllm bench serve` on a real engine behind the router says what we say."""

import statistics
from collections.abc import Sequence
from dataclasses import astuple

import pytest

from serve_app.reference.build import CHECKPOINT
from tests.engine_cpu.conftest import MODEL
from tests.fakes.second_opinion import Medians, both_medians

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
ATTEMPTS = 4
LIMIT = 0.1


def test_vllm_bench_agrees_on_a_real_engine(serve, tmp_path):
    """P50 of TTFT and TPOT within 10 %, one tool after the other: on a shared machine the engine
    itself may not do the same twice, so it is tried again. A wrong definition is wrong each time:
    TTFT by a gap or more, TPOT by one part in the number of tokens. Where not even the same tool
    agrees with itself it is skipped; tests/contract holds the definitions on a steady server.

    Almost even arrivals, far apart: the tools draw different ones, and where a slow machine's
    answers overlap, TPOT is of how often they do (two 15 % apart, each time the same way).

    Prompts of 800 tokens, for a TTFT of some 33 ms: of a quiet machine's TTFT the other client
    adds 1 to 2 ms of its own, which is a tenth of the 14 ms that 16 tokens take.
    """
    seen: list[tuple[Medians, Medians]] = []
    for attempt in range(ATTEMPTS):
        ours, theirs = both_medians(
            tmp_path / str(attempt),
            serve.base_url,
            MODEL,
            "bf16",
            CHECKPOINT,
            rate_per_s=2,
            burstiness=100,
            n_requests=60,
            output_tokens=32,
            input_tokens=800,
        )
        print(f"attempt {attempt}: ours {ours}, vllm bench serve {theirs}")
        seen.append((ours, theirs))
        if agree(ours, theirs) or agree(*map(middle, zip(*seen, strict=True))):
            return
    drift = max(own_drift(attempts) for attempts in zip(*seen, strict=True))
    if drift > LIMIT:
        pytest.skip(f"one tool differs from itself by {drift:.0%} here: nothing can be decided")
    pytest.fail(f"ours {ours}, vllm bench serve {theirs}")


def agree(ours: Medians, theirs: Medians) -> bool:
    """Within the limit, both."""
    return astuple(ours) == pytest.approx(astuple(theirs), rel=LIMIT)


def own_drift(attempts: Sequence[Medians]) -> float:
    """What lies between one tool's attempts at the same, as a share of the least."""
    columns = zip(*map(astuple, attempts), strict=True)
    return max(max(column) / min(column) - 1 for column in columns)


def middle(attempts: Sequence[Medians]) -> Medians:
    """The median over attempts: the machine was faster now for the one, now for the other."""
    ttfts_ms, tpots_ms = zip(*map(astuple, attempts), strict=True)
    return Medians(statistics.median(ttfts_ms), statistics.median(tpots_ms))
