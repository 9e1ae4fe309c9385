"""What quantization papers report, as ratios that a model of 2.9 million parameters can show.

The measure is mean |delta logprob| per token over the check texts, of the dequantized weights
against the base's, by fp32 forward passes: the gate holds that the engine computes the same.
Tokens of one text are not independent: differences are resampled text by text.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap

from serve_app.quantize.catalogue import recipe
from serve_app.quantize.gate import Candidate
from serve_app.quantize.judging import stored_result
from serve_app.reference.locate import TWIN_SUFFIX, resolve
from serve_app.reference.logprobs import REFERENCE_NPZ, load_reference
from serve_app.store.safetensors_header import read_header
from serve_app.store.source import LocalSource

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

NAMES = ("baseline", "int8", "gptq", "awq", "rtn", "gptq-w3", "rtn-w3", "gptq-w2", "rtn-w2")
ORDER = (("gptq", "awq"), ("awq", "rtn"), ("gptq", "gptq-w3"), ("rtn", "rtn-w3"),
         ("gptq-w3", "gptq-w2"), ("rtn-w3", "rtn-w2"), ("gptq-w3", "rtn-w3"),
         ("gptq-w2", "rtn-w2"))  # fmt: skip
"""Pairs of which the first must be nearer to the base, beyond chance."""


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    command = [sys.executable, "-m", "serve_app.cli", "reference", "build"]
    command += [word for name in NAMES for word in ("--only", name)]
    subprocess.run(command, check=True)
    return {name: resolve(f"reference://{name}") for name in NAMES}


def damage(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """By text: the sum of |delta logprob|, and how many tokens it is over."""
    reference = load_reference(folder / REFERENCE_NPZ)
    pairs = zip(reference.logprobs, reference.base_logprobs, strict=True)
    each = [np.abs(of - base) for of, base in pairs]
    return np.array([row.sum() for row in each]), np.array([len(row) for row in each])


def mean_interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """Mean per token with its 95 % interval, resampled text by text."""

    def per_token(sums, counts, axis=-1):
        return sums.sum(axis=axis) / counts.sum(axis=axis)

    found = bootstrap(
        (sums, counts), per_token, paired=True, vectorized=True, n_resamples=4000,
        rng=np.random.default_rng(0), method="BCa",
    )  # fmt: skip
    low, high = found.confidence_interval
    return float(per_token(sums, counts)), float(low), float(high)


def test_four_bits_take_less_than_a_third_of_the_linear_weights(folders):
    def linear_bytes(folder: Path) -> int:
        tensors = read_header(LocalSource(folder), "model.safetensors")
        return sum(info.n_bytes for name, info in tensors.items() if "_proj." in name)

    base = linear_bytes(folders["baseline"])
    for name in ("gptq", "awq", "rtn"):
        ratio = linear_bytes(folders[name]) / base
        print(f"{name}: {ratio:.3f} of the bf16 linear weights")
        assert ratio <= 0.31


def test_the_order_of_the_papers_beyond_chance(folders):
    by_name = {name: damage(folder) for name, folder in folders.items()}
    for name in NAMES[1:]:
        sums, counts = by_name[name]
        mean, low, high = mean_interval(sums, counts)
        print(f"{name:9} mean |delta logprob| {mean:.4f} nats ({low:.4f} to {high:.4f})")
    for nearer, further in ORDER:
        difference = by_name[further][0] - by_name[nearer][0]
        mean, low, high = mean_interval(difference, by_name[nearer][1])
        print(f"{further} - {nearer}: {mean:+.4f} nats ({low:+.4f} to {high:+.4f})")
        assert low > 0, f"{nearer} must be nearer to the base than {further}"


def test_int8_keeps_perplexity_within_half_a_percent(folders):
    reference = load_reference(folders["int8"] / REFERENCE_NPZ)
    of, base = (np.concatenate(list(x)) for x in (reference.logprobs, reference.base_logprobs))
    ratio = float(np.exp(base.mean() - of.mean()))
    print(f"int8: perplexity ratio {ratio:.5f} over {len(of)} tokens")
    assert abs(ratio - 1) < 0.005


def test_the_engine_computes_what_these_weights_say(folders):
    for name, folder in folders.items():
        twin = folder.with_name(folder.name + TWIN_SUFFIX)
        result = stored_result(Candidate(recipe(name), folder, twin if twin.is_dir() else None))
        assert result is not None
        assert result.passed
