"""`vllm bench serve` sees what we see. vLLM alone takes some 8 s to import."""

import pytest

from loadtests.bench.mock import mock_engine
from serve_app.reference.build import CHECKPOINT
from tests.fakes.second_opinion import both_medians


def test_vllm_bench_agrees_on_p50_ttft_and_tpot(tmp_path):
    """Within 10 %. As vLLM does, the mock sends the role with the first token: `vllm bench serve`
    takes the role for a token.
    """
    pytest.importorskip("vllm")
    with mock_engine(tmp_path, ttft_ms=60, itl_ms=10, jitter=0.1, role_with_token=True) as mock:
        ours, theirs = both_medians(
            tmp_path / "ours",
            mock.base_url,
            "m",
            "a",
            CHECKPOINT,
            rate_per_s=12,
            n_requests=60,
            output_tokens=32,
        )
    print(f"ours {ours}, vllm bench serve {theirs}")
    assert ours.ttft_ms == pytest.approx(theirs.ttft_ms, rel=0.1)
    assert ours.tpot_ms == pytest.approx(theirs.tpot_ms, rel=0.1)
