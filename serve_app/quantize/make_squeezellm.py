"""SqueezeLLM (Kim et al., arXiv 2306.07629): look-up tables by sensitivity, outliers kept apart.

Per linear layer: the weights that matter most and the largest ones are kept exact in a sparse
matrix; the rest of each output channel is clustered into 2^bits values by k-means, weighted by the
diagonal of the Fisher information.

What it takes. Time: one forward and backward pass per calibration row (and per window, below), and
for each output channel of K weights a sort and work that does not depend on K (`kmeans`): on one
core of an AMD EPYC 4 s and 3 s for the reference model's 7,680 channels and 2.4 million weights. By
that rate the 1.3 million channels of an 8B model are ten minutes at 4 bits beside the sorts; on a
GPU, if there is one, both run there (neither was tried). Memory: the model, 4 bytes per weight of
one window of layers (`WINDOW_BYTES`), and the result: the window bounds the Fisher information,
whose whole would be twice an 8B model's own 16 GB.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from serve_app.domain.errors import BuildError
from serve_app.domain.units import GIB
from serve_app.engines.vllm_squeezellm_weights import CHECKPOINT_FORMAT, CODES
from serve_app.quantize.kmeans import weighted_kmeans
from serve_app.quantize.layouts.plain import read_tensors
from serve_app.quantize.layouts.squeezellm import store
from serve_app.quantize.recipes import Recipe, SqueezeLlm
from serve_app.quantize.sensitivity import diagonal_fisher

WINDOW_BYTES = 4 * GIB
"""Of Fisher information held at once; each window of layers takes its own passes over the text."""

FP32_PARAMETERS = 2 * 10**9
"""Up to this size gradients are computed in fp32, above in bf16: half the memory."""

FLOOR = 1e-3
"""Of a layer's mean sensitivity, added to every weight: what the calibration text does not touch
still counts a little. On the reference model 0 to 0.1 make no difference."""

LARGEST_FP16 = 65504.0


@dataclass(frozen=True)
class Shares:
    """Of a layer's weights, how many are kept exact: the `largest`, and the most `sensitive`."""

    largest: float
    sensitive: float

    @property
    def any(self) -> bool:
        """Whether there is a sparse part at all."""
        return self.largest > 0 or self.sensitive > 0


def make(recipe: Recipe, base: Path, out: Path, calibration_rows: list[list[int]]) -> None:
    """Write weights and config.json into `out`. Raises `BuildError`."""
    chosen = recipe.make
    assert isinstance(chosen, SqueezeLlm)
    shares = Shares(chosen.outlier_share, chosen.sensitive_share)
    rows = calibration_rows if chosen.sensitivity == "fisher" else []
    squeeze(base, out, chosen.bits, shares, rows)


def squeeze(
    base: Path, out: Path, bits: int, shares: Shares, rows: Sequence[Sequence[int]]
) -> None:
    """Quantize the checkpoint in `base` into `out`; without `rows` all weights count alike.

    Raises `BuildError` for models whose weights are not in plain linear layers.
    """
    stored = read_tensors(base)
    model = _load(base, sum(tensor.numel() for tensor in stored.values()))
    layers, left = _layers(model, stored, base)
    tensors = {
        name: tensor
        for name, tensor in stored.items()
        if name.removesuffix(".weight") not in layers
    }
    done = 0
    for window in windows({name: layer.weight.numel() for name, layer in layers.items()}):
        weights = {name: layers[name].weight for name in window}
        fisher = diagonal_fisher(model, weights, rows, _say("gradients, row")) if rows else {}
        for name in window:
            done += 1
            print(f"squeezellm: {name}, layer {done} of {len(layers)}", file=sys.stderr, flush=True)
            parts = squeeze_matrix(weights[name].detach(), fisher.pop(name, None), bits, shares)
            tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "squeezellm",
        "checkpoint_format": CHECKPOINT_FORMAT,
        "bits": bits,
        "outliers": shares.any,
        "ignore": left,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def squeeze_matrix(
    weight: Tensor, fisher: Tensor | None, bits: int, shares: Shares
) -> dict[str, Tensor]:
    """The stored tensors of one `[N, K]` matrix. Raises `BuildError` if fp16 cannot hold it."""
    weight = weight.float()
    largest = float(weight.abs().max())
    if not largest <= LARGEST_FP16:
        raise BuildError(f"a weight of {largest} cannot be stored in fp16, whose end is 65504")
    sensitivity = torch.ones_like(weight) if fisher is None else fisher + FLOOR * fisher.mean()
    exact = outliers(weight, fisher, shares)
    counts = sensitivity.masked_fill(exact, 0.0)
    table, codes = weighted_kmeans(weight, counts, 2**bits)
    return store(codes, table, weight, exact if shares.any else None, bits)


def outliers(weight: Tensor, fisher: Tensor | None, shares: Shares) -> Tensor:
    """Which places are kept exact, bool `[N, K]`: the most sensitive, then the largest others."""
    exact = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    n_sensitive = round(shares.sensitive * weight.numel()) if fisher is not None else 0
    if fisher is not None:
        exact[fisher.flatten().topk(n_sensitive).indices] = True
    size = weight.abs().flatten().masked_fill(exact, -1.0)
    exact[size.topk(round(shares.largest * weight.numel())).indices] = True
    return exact.view_as(weight)


def windows(sizes: Mapping[str, int], limit_bytes: int = WINDOW_BYTES) -> Iterator[list[str]]:
    """Layers in order, cut where float32 numbers of so many weights would exceed the limit."""
    window: list[str] = []
    held = 0
    for name, size in sizes.items():
        if window and held + 4 * size > limit_bytes:
            yield window
            window, held = [], 0
        window.append(name)
        held += 4 * size
    if window:
        yield window


def _load(base: Path, n_parameters: int) -> torch.nn.Module:
    dtype = torch.float32 if n_parameters <= FP32_PARAMETERS else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ready: torch.nn.Module = model.to(device).eval()
    return ready


def _layers(
    model: torch.nn.Module, stored: Mapping[str, Tensor], base: Path
) -> tuple[dict[str, Any], list[str]]:
    """Linear layers to quantize by name, and those left alone (the head and routers)."""
    head = model.get_output_embeddings()
    layers: dict[str, Any] = {}
    left: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        if module is head or name.endswith((".gate", "_gate")):
            left.append(name)
            continue
        if f"{name}.weight" not in stored:
            raise BuildError(
                f"{base} has no tensor {name}.weight, which transformers' model has: SqueezeLLM is "
                "made of checkpoints with transformers' own names"
            )
        if module.in_features % CODES:
            raise BuildError(
                f"{name} has {module.in_features} input channels: need a multiple of {CODES}"
            )
        layers[name] = module
    n_linear = sum(layer.weight.numel() for layer in layers.values())
    n_matrices = sum(
        tensor.numel() for name, tensor in stored.items() if tensor.dim() > 1 and ".layers." in name
    )
    if 2 * n_linear < n_matrices:
        raise BuildError(
            f"{base} has {n_matrices:,} weights in its layers, of which {n_linear:,} are in linear "
            "layers: SqueezeLLM does not cover experts; take GPTQ or AWQ"
        )
    return layers, left


def _say(what: str) -> Any:
    def progress(done: int, total: int) -> None:
        if done % 16 == 0 or done == total:
            print(f"squeezellm: {what} {done} of {total}", file=sys.stderr, flush=True)

    return progress
