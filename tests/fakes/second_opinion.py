"""The same load on the same target by our load process and by `vllm bench serve`, one by one."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.drive import drive
from tests.fakes.vllm_bench import run_vllm_bench


@dataclass(frozen=True)
class Medians:
    """P50 of TTFT (from the actual send, as vLLM counts) and of TPOT."""

    ttft_ms: float
    tpot_ms: float


def both_medians(
    folder: Path,
    base_url: str,
    model: str,
    variant: str,
    tokenizer: Path,
    *,
    rate_per_s: float,
    n_requests: int,
    output_tokens: int,
    input_tokens: int = 16,
    burstiness: float = 1.0,
) -> tuple[Medians, Medians]:
    """Ours, and vLLM's: arrivals at `rate_per_s`, forced lengths, every request answered.

    Gaps are gamma of shape `burstiness`: 1 is Poisson, 100 almost even. `tokenizer` is the
    checkpoint's folder. Works on a mock and on a real engine.
    """
    theirs = run_vllm_bench(
        base_url,
        f"{model}@{variant}",
        tokenizer,
        rate_per_s=rate_per_s,
        n_requests=n_requests,
        output_tokens=output_tokens,
        input_tokens=input_tokens,
        burstiness=burstiness,
    )
    assert theirs["completed"] == n_requests
    assert set(theirs["output_lens"]) == {output_tokens}
    campaign = {
        "target": {"base_url": base_url, "model": model, "variants": [variant]},
        "workload": {
            "prompts": {
                "kind": "synthetic",
                "mix": [
                    {
                        "name": "same",
                        "weight": 1,
                        "input_tokens": _exactly(input_tokens),
                        "output_tokens": _exactly(output_tokens),
                    }
                ],
            }
        },
        "stages": [
            {
                "name": "same",
                "kind": "gamma",
                "burstiness": burstiness,
                "rate_per_s": rate_per_s,
                "duration_s": n_requests / rate_per_s,
            }
        ],
    }
    records = drive(folder, campaign).records
    assert [record.error for record in records] == [None] * n_requests
    assert {record.output_tokens for record in records} == {output_tokens}
    ours = Medians(
        ttft_ms=statistics.median((r.t_first_ns - r.t_send_ns) / 1e6 for r in records),
        tpot_ms=statistics.median(
            (r.t_last_ns - r.t_first_ns) / 1e6 / (r.output_tokens - 1) for r in records
        ),
    )
    return ours, Medians(theirs["median_ttft_ms"], theirs["median_tpot_ms"])


def _exactly(n_tokens: int) -> dict[str, float]:
    return {"median": n_tokens, "sigma": 0, "min": n_tokens, "max": n_tokens}
