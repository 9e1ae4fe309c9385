"""Forward passes of dense weights in plain torch, and of what engines make of them by mistake."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, LlamaForCausalLM

from serve_app.reference.logprobs import Reference, Values

BATCH = 24
PAD = 4


def llama(config: Path, dense: Mapping[str, Tensor]) -> nn.Module:
    """The model of a folder's config.json with these weights, in fp32."""
    settings = AutoConfig.from_pretrained(config)
    if hasattr(settings, "quantization_config"):
        del settings.quantization_config
    settings.dtype = torch.float32
    model = LlamaForCausalLM(settings)
    model.load_state_dict(dict(dense))
    return model.eval()


def passes(
    model: nn.Module, rows: Sequence[Sequence[int]]
) -> tuple[list[Values], list[Values], list[Values]]:
    """Per row: logprob of each token after the first, the most likely token there, its logprob."""
    found: list[tuple[Values, Values, Values]] = [(np.empty(0),) * 3] * len(rows)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(rows), BATCH):
        batch = by_length[start : start + BATCH]
        longest = max(len(rows[i]) for i in batch)
        # What is padded comes last: nothing before looks at it.
        tokens = torch.tensor([[*rows[i], *[PAD] * (longest - len(rows[i]))] for i in batch])
        with torch.inference_mode():
            scores = model(input_ids=tokens).logits.float().log_softmax(-1)
        for row, i in zip(scores, batch, strict=True):
            values = row[: len(rows[i]) - 1]
            wanted = torch.tensor(rows[i][1:])[:, None]
            top = values.max(-1)
            found[i] = (
                values.gather(1, wanted)[:, 0].numpy(), top.indices.numpy(), top.values.numpy(),
            )  # fmt: skip
    logprobs, best, best_logprobs = zip(*found, strict=True)
    return list(logprobs), list(best), list(best_logprobs)


def reference(variant: nn.Module, base: nn.Module, rows: Sequence[Sequence[int]]) -> Reference:
    """What the quantization job stores beside a variant."""
    return Reference(rows, *passes(variant, rows), passes(base, rows)[0])


def as_engine(model: nn.Module, rows: Sequence[Sequence[int]]) -> tuple[Values, Values]:
    """The same as an engine gives it to `judge`: logprobs and most likely tokens, row after row."""
    logprobs, best, _ = passes(model, rows)
    return np.concatenate(logprobs), np.concatenate(best)


@contextmanager
def inputs_changed(
    model: nn.Module, change: Callable[[str, Tensor], Tensor]
) -> Iterator[nn.Module]:
    """Every linear layer but the head sees `change(name, input)`."""
    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: (change(name, inputs[0]), *inputs[1:])
        )
        for name, module in linears(model).items()
    ]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers but the head, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }


def per_token_int8(_: str, x: Tensor) -> Tensor:
    """Each token's values on 255 levels of its own: dynamic symmetric INT8."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-8) / 127
    return (x / scale).round().clamp(-128, 127) * scale


def static_int8(ranges: Mapping[str, tuple[float, float]]) -> Callable[[str, Tensor], Tensor]:
    """Each layer's values on 256 levels of a range that was measured before: static asymmetric."""

    def change(name: str, x: Tensor) -> Tensor:
        low, high = (min(ranges[name][0], 0.0), max(ranges[name][1], 0.0))
        scale = (high - low) / 255
        zero = round(-128 - low / scale)
        return ((x / scale + zero).round().clamp(-128, 127) - zero) * scale

    return change


def input_ranges(model: nn.Module, rows: Sequence[Sequence[int]]) -> dict[str, tuple[float, float]]:
    """Least and largest input of each linear layer over these rows: what calibration measures."""
    found: dict[str, tuple[float, float]] = {}

    def note(name: str, x: Tensor) -> Tensor:
        low, high = found.get(name, (0.0, 0.0))
        found[name] = (min(low, float(x.min())), max(high, float(x.max())))
        return x

    with inputs_changed(model, note):
        passes(model, rows)
    return found


def interleaved(dense: Mapping[str, Tensor], heads: int, kv_heads: int) -> dict[str, Tensor]:
    """q and k rows in the order of llama-architecture GGUF files: rotary pairs side by side."""
    changed = dict(dense)
    for name, tensor in dense.items():
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if f"{part}.weight" in name:
                pairs = tensor.view(count, 2, -1, tensor.shape[1])
                changed[name] = pairs.transpose(1, 2).reshape(tensor.shape).contiguous()
    return changed
