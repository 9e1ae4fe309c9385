"""Make one variant with llm-compressor: the only module that imports it.

Runs in the quantizers' own environment, whose transformers differs from the engines':

    PYTHONPATH=. .venv-quantize/bin/python -m serve_app.quantize.job \\
        --base serve_app/reference/checkpoint --variant gptq --out /tmp/gptq

Writes the checkpoint, `quantile.json` (what it is, how it was made) and `reference.npz` (what a
forward pass must give). Exits 1 with the reason on stderr if the variant cannot be made.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CompressedTensorsConfig,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from serve_app.domain.errors import BuildError, QuantileError
from serve_app.domain.quant import QuantScheme
from serve_app.quantize.pins import QUANTIZERS, pinned_versions, public_version
from serve_app.quantize.recipes import Recipe, Step, recipe
from serve_app.reference.corpus import calibration_texts, check_texts
from serve_app.reference.locate import QUANTIZE_JSON
from serve_app.reference.logprobs import REFERENCE_NPZ, Reference, save_reference

COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""Taken over from the base as they are: what the quantizer writes in their place may differ."""


def make(chosen: Recipe, base: Path, out: Path) -> None:
    """Make the variant in the empty or missing folder `out`. Raises `BuildError`."""
    started = time.perf_counter()
    _check_versions()
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    calibration = _calibration_rows(chosen, tokenizer) if chosen.steps else []
    if chosen.steps:
        _quantize(chosen, base, out, calibration)
    else:
        shutil.copy2(base / "model.safetensors", out)
        shutil.copy2(base / "config.json", out)
    for name in COPIED:
        shutil.copy2(base / name, out)
    save_reference(out / REFERENCE_NPZ, _reference(chosen, base, out, tokenizer))
    (out / QUANTIZE_JSON).write_text(
        json.dumps(_card(chosen, calibration, time.perf_counter() - started), indent=2) + "\n"
    )


def _quantize(chosen: Recipe, base: Path, out: Path, calibration: list[list[int]]) -> None:
    if not torch.accelerator.is_available():
        # AWQ pins memory unconditionally (llmcompressor 0.13.0, transform/awq/base.py:503), and
        # torch refuses to pin where there is no accelerator.
        IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in calibration]
    oneshot(
        model=model,
        recipe=[_STEPS[step](chosen.scheme) for step in chosen.steps],
        dataset=Dataset.from_list(rows),
        max_seq_length=chosen.calibration_length,
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )
    # temperature 0 in the base's file is meant for vLLM; transformers refuses to write it again.
    model.generation_config = GenerationConfig(eos_token_id=model.config.eos_token_id)
    model.save_pretrained(out, save_compressed=True)


_STEPS: dict[Step, Callable[[QuantScheme], object]] = {
    "smoothquant": lambda scheme: SmoothQuantModifier(smoothing_strength=0.5),
    "awq": lambda scheme: AWQModifier(duo_scaling="both"),
    "gptq": lambda scheme: GPTQModifier(config_groups=_groups(scheme), ignore=["lm_head"]),
    "rtn": lambda scheme: QuantizationModifier(config_groups=_groups(scheme), ignore=["lm_head"]),
}


def _groups(scheme: QuantScheme) -> dict[str, QuantizationScheme]:
    weights = QuantizationArgs(
        num_bits=scheme.bits,
        type="int",
        symmetric=scheme.symmetric,
        strategy="group" if scheme.group_size else "channel",
        group_size=scheme.group_size,
    )
    activations = None
    if scheme.activation_bits < 16:
        activations = QuantizationArgs(
            num_bits=scheme.activation_bits, type="int", strategy="token", dynamic=True
        )
    group = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)
    return {"group_0": group}


def _calibration_rows(chosen: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """`calibration_samples` rows of exactly `calibration_length` tokens of seen exchanges."""
    stream: list[int] = []
    for text in calibration_texts():
        stream += tokenizer(text, add_special_tokens=False)["input_ids"]
    size, wanted = chosen.calibration_length, chosen.calibration_samples
    if len(stream) < size * wanted:
        raise BuildError(
            f"recipe {chosen.name} calibrates on {size * wanted} tokens, the corpus gives "
            f"{len(stream)}: lower calibration_samples ({wanted})"
        )
    return [stream[i * size : (i + 1) * size] for i in range(wanted)]


def _reference(
    chosen: Recipe, base: Path, out: Path, tokenizer: PreTrainedTokenizerBase
) -> Reference:
    """fp32 forward passes over the check texts: of the dequantized weights, and of the base's.

    Where the scheme quantizes activations, so does this: compressed-tensors' modules quantize and
    dequantize them in fp32 (measured on int8: 0.011 nats from the same weights in a plain model).
    """
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in check_texts()]
    options = {"quantization_config": CompressedTensorsConfig(run_compressed=False)}
    variant = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, **(options if chosen.steps else {})
    )
    logprobs, best, best_logprobs = _forward(variant, rows)
    plain, _, _ = _forward(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), rows)
    return Reference(rows, logprobs, best, best_logprobs, plain)


def _forward(
    model: torch.nn.Module, rows: Sequence[Sequence[int]]
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Per row: logprob of each token after the first, the most likely token there, its logprob."""
    logprobs, best, best_logprobs = [], [], []
    for row in rows:
        tokens = torch.tensor([row])
        with torch.inference_mode():
            scores = model(input_ids=tokens).logits[0, :-1].float().log_softmax(-1)
        logprobs.append(scores.gather(1, tokens[0, 1:, None])[:, 0].numpy())
        top = scores.max(-1)
        best.append(top.indices.numpy())
        best_logprobs.append(top.values.numpy())
    return logprobs, best, best_logprobs


def _card(chosen: Recipe, calibration: list[list[int]], wall_s: float) -> dict[str, object]:
    digest = hashlib.sha256(json.dumps(calibration).encode()).hexdigest()
    return {
        "schema_version": 1,
        "variant": chosen.name,
        "method": chosen.scheme.method,
        "scheme": asdict(chosen.scheme),
        "steps": chosen.steps,
        "engine_dtype": chosen.engine_dtype,
        "recipe_sha256": chosen.digest(),
        "calibration": {
            "samples": len(calibration),
            "length_tokens": chosen.calibration_length,
            "tokens_sha256": digest,
        }
        if calibration
        else None,
        "reference": {
            "file": REFERENCE_NPZ,
            "dtype": "float32",
            "weights": "dequantized" if chosen.steps else "as stored",
            "activations": "quantized per token, as the scheme says"
            if chosen.scheme.activation_bits < 16
            else "float32",
        },
        "libraries": {name: version(name) for name in QUANTIZERS},
        "wall_seconds": round(wall_s, 2),
    }


def _check_versions() -> None:
    """The cache key is made of the pinned versions, so they have to be what runs."""
    pins = pinned_versions()
    wrong = {
        name: version(name) for name in QUANTIZERS if public_version(version(name)) != pins[name]
    }
    if wrong:
        have = ", ".join(f"{name} {installed}" for name, installed in wrong.items())
        need = ", ".join(f"{name} {pins[name]}" for name in wrong)
        raise BuildError(
            f"the quantizers' environment ({sys.prefix}) has {have}; need {need}: "
            "install it again from serve_app/quantize/constraints.txt"
        )


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Make one quantized variant.")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base checkpoint")
    parser.add_argument("--variant", required=True, help="name of a recipe")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        make(recipe(args.variant), args.base, args.out)
    except QuantileError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
