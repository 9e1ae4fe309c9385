"""Which linear layers a recipe's `of` and `keep` name, and a checkpoint's linear layers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.domain.tensors import TensorInfo
from serve_app.quantize.recipes import LayerRule

PATTERNS = {
    "all": r".*",
    "attention": r".*self_attn\..*_proj$",
    "feed-forward": r".*(mlp|block_sparse_moe|feed_forward)\..*(proj|w[123])$",
}
"""What `of` names, as expressions over module names (`make_llmcompressor.TARGETS`)."""

_NOT_LINEAR = re.compile(r"embed_tokens|wte|norm|router|(^|\.|_)gate$")
_HEAD = "lm_head"
_BLOCK = re.compile(r"\blayers\.(\d+)\.")


@dataclass(frozen=True)
class Linear:
    """A linear layer: `outputs` x `inputs` weights, stored in `n_bytes`."""

    name: str
    outputs: int
    inputs: int
    n_bytes: int

    @property
    def weights(self) -> int:
        """How many."""
        return self.outputs * self.inputs

    @property
    def block(self) -> str:
        """The decoder layer that it is in; its own name outside of any."""
        found = _BLOCK.search(self.name)
        return found[1] if found else self.name


def linears(tensors: Mapping[str, TensorInfo]) -> tuple[Linear, ...]:
    """The linear layers of a plain checkpoint, without head, embeddings and routers.

    Experts that are stored together (three dimensions) count as so many layers of the last two.
    """
    found = []
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if len(tensor.shape) < 2 or _NOT_LINEAR.search(module) or module == _HEAD:
            continue
        *stacked, outputs, inputs = tensor.shape
        n = 1
        for size in stacked:
            n *= size
        found.append(Linear(module, n * outputs, inputs, tensor.n_bytes))
    return tuple(found)


def is_covered(rule: LayerRule, keep: tuple[str, ...], module: str) -> bool:
    """Whether the rule's precision is for this module."""
    return any(_matches(PATTERNS.get(name, name), module) for name in rule.of) and not any(
        _matches(name, module) for name in keep
    )


def _matches(name: str, module: str) -> bool:
    if name in PATTERNS.values():
        return re.match(name, module) is not None
    if name.startswith("re:"):
        return re.match(name.removeprefix("re:"), module) is not None
    return module == name or module.endswith(f".{name}")
