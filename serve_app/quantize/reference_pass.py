"""What the weights of a variant say: fp32 forward passes over the check texts, by transformers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig

from serve_app.domain.errors import BuildError
from serve_app.quantize.recipes import LlmCompressor, Recipe
from serve_app.reference.logprobs import Reference, Values

Passes = tuple[list[Values], list[Values], list[Values]]
"""Per row: logprob of each token after the first, the most likely token there, its logprob."""


def rounds_in_flight(recipe: Recipe) -> bool:
    """Whether activations or the KV cache are quantized too, so that weights alone do not tell."""
    made = recipe.make
    return isinstance(made, LlmCompressor) and (
        made.kv_cache is not None or any(rule.activations for rule in made.layers)
    )


def variant_model(
    recipe: Recipe, base: Path, folder: Path, dense: dict[str, torch.Tensor]
) -> torch.nn.Module:
    """The variant as a plain fp32 model of its dequantized weights.

    Where activations are quantized, so they are here: compressed-tensors' modules quantize and
    dequantize them in fp32 (measured on int8: 0.011 nats from the same weights in a plain model).
    """
    if rounds_in_flight(recipe):
        quantization = CompressedTensorsConfig(run_compressed=False)
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=quantization
        )
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=torch.float32)
    missing, unexpected = model.load_state_dict(dense, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    lacking = [name for name in missing if name not in tied]
    if lacking or unexpected:
        raise BuildError(
            f"{folder} dequantizes to other tensors than {base} has: lacks {lacking[:3]}, "
            f"has {unexpected[:3]}"
        )
    model.tie_weights()
    return model.eval()


def base_model(base: Path) -> torch.nn.Module:
    """The checkpoint before quantization, in fp32."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def forward(model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> Passes:
    """Pass every row of tokens through the model."""
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


def as_reference(
    rows: Sequence[Sequence[int]], of_variant: Passes, base_logprobs: Sequence[Values]
) -> Reference:
    """The two passes beside each other, as the gate reads them."""
    logprobs, best, best_logprobs = of_variant
    return Reference(rows, logprobs, best, best_logprobs, list(map(np.asarray, base_logprobs)))
