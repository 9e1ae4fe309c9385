"""Carry a recipe's steps out with llm-compressor."""

import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, GenerationConfig

from serve_app.quantize.recipes import (
    Awq,
    Gptq,
    LayerRule,
    LlmCompressor,
    Numbers,
    Recipe,
    SmoothQuant,
    Step,
)

TARGETS = {
    "all": "Linear",
    "attention": r"re:.*self_attn\..*_proj$",
    "feed-forward": r"re:.*(mlp|block_sparse_moe|feed_forward)\..*(proj|w[123])$",
}
"""What `of` names, as llm-compressor finds it."""


def make(recipe: Recipe, base: Path, out: Path, calibration_rows: list[list[int]]) -> None:
    """Write the quantized weights and config.json into `out`, in the recipe's layout."""
    chosen = recipe.make
    assert isinstance(chosen, LlmCompressor)
    if chosen.layout == "compressed-tensors":
        _compress(chosen, base, out, calibration_rows)
        return
    with tempfile.TemporaryDirectory(prefix=".compressed-", dir=out.parent) as scratch:
        _compress(chosen, base, Path(scratch), calibration_rows)
        layout = import_module(f"serve_app.quantize.layouts.{chosen.layout}")
        layout.write(Path(scratch), out)


def _compress(chosen: LlmCompressor, base: Path, out: Path, rows: list[list[int]]) -> None:
    if not torch.accelerator.is_available():
        # AWQ pins memory unconditionally (llmcompressor 0.13.0, transform/awq/base.py:503), and
        # torch refuses to pin where there is no accelerator.
        IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    data: dict[str, Any] = {}
    if rows:
        examples = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
        data = {
            "dataset": Dataset.from_list(examples),
            "max_seq_length": len(rows[0]),
            "num_calibration_samples": len(rows),
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, recipe=[_modifier(step, chosen) for step in chosen.steps], **data)
    # temperature 0 in the base's file is meant for vLLM; transformers refuses to write it again.
    model.generation_config = GenerationConfig(eos_token_id=model.config.eos_token_id)
    model.save_pretrained(out, save_compressed=True)
    (out / "recipe.yaml").unlink(missing_ok=True)  # quantile.json holds it, with what it means
    shutil.rmtree(out / ".cache", ignore_errors=True)


def _modifier(step: Step, chosen: LlmCompressor) -> object:
    match step:
        case SmoothQuant(strength=strength):
            return SmoothQuantModifier(smoothing_strength=strength)
        case Awq(duo_scaling=duo):
            return AWQModifier(duo_scaling=duo)
        case Gptq(damping=damping, activation_order=order, block_size=size):
            actorder = None if order == "none" else order
            options = {"dampening_frac": damping, "actorder": actorder, "block_size": size}
            return GPTQModifier(**options, **_precision(chosen))
        case _:
            return QuantizationModifier(**_precision(chosen))


def _precision(chosen: LlmCompressor) -> dict[str, Any]:
    """The arguments that say what gets how many bits."""
    found: dict[str, Any] = {"ignore": list(chosen.keep)}
    if chosen.layers:
        found["config_groups"] = {
            f"group_{i}": _scheme(rule) for i, rule in enumerate(chosen.layers)
        }
    else:
        found["targets"] = []
    if chosen.kv_cache:
        found["kv_cache_scheme"] = _numbers(chosen.kv_cache)
    return found


def _scheme(rule: LayerRule) -> QuantizationScheme:
    return QuantizationScheme(
        targets=[TARGETS.get(name, name) for name in rule.of],
        weights=QuantizationArgs(**_numbers(rule.weights)),
        input_activations=QuantizationArgs(**_numbers(rule.activations))
        if rule.activations
        else None,
    )


def _numbers(numbers: Numbers) -> dict[str, Any]:
    found: dict[str, Any] = {
        "num_bits": numbers.bits,
        "type": numbers.kind,
        "symmetric": numbers.symmetric,
        "strategy": numbers.per,
        "dynamic": numbers.dynamic,
    }
    if numbers.group_size:
        found["group_size"] = numbers.group_size
    if numbers.per == "block":
        found["block_structure"] = [128, 128]
    return found
