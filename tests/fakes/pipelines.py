"""Pipelines for tests: the whole path, short, as plain data."""

from pathlib import Path
from typing import Any

import yaml

CAMPAIGN = {
    "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [8, 24]},
    "stages": [
        {"name": "steady", "kind": "poisson", "rate_per_s": 8, "duration_s": 20},
        {"name": "batch-8", "kind": "concurrency", "concurrency": 8, "duration_s": 5},
    ],
    "blocks": 3, "seed": 3, "warmup_s": 1, "cooldown_s": 0.5,
    "slo": {"ttft_ms": 1000, "e2e_ms": 4000, "attainment": 0.9},
}  # fmt: skip


def pipeline(**changes: Any) -> dict[str, Any]:
    """Baseline, INT8, two of 4 bits, a recommendation."""
    return {
        "model": "m",
        "base": "reference://baseline",
        "engine": {"max_model_len": 512},
        "stages": [
            {"name": "baseline", "do": "make", "recipes": ["baseline"]},
            {"name": "measure", "do": "measure", "campaign": CAMPAIGN},
            {"name": "int8", "do": "make", "recipes": ["int8"],
             "gates": {"max_weights_ratio": 0.7}},
            {"name": "validate-int8", "do": "validate", "split": {"requests": 60}},
            {"name": "4-bit", "do": "make", "recipes": ["gptq", "awq"],
             "gates": {"max_weights_ratio": 0.45}},
            {"name": "validate-4-bit", "do": "validate", "split": {"requests": 200},
             "campaign": CAMPAIGN,
             "gates": {"latency": {"latency": "e2e-p95", "max_ratio": 2.0}}},
            {"name": "recommend", "do": "recommend", "on_inconclusive": "continue"},
        ],
    } | changes  # fmt: skip


def write_pipeline(path: Path, content: dict[str, Any] | None = None) -> Path:
    """As YAML."""
    path.write_text(yaml.safe_dump(content or pipeline(), sort_keys=False))
    return path
