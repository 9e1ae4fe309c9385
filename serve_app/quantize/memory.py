"""The most memory that a quantization job holds, before it starts: a bound by its parts.

Follows `serve_app.quantize.job`: a process makes (bf16 model; for GPTQ float32 Hessians of one
decoder layer, inputs squared, arXiv 2210.17323 sec. 3.3; for SqueezeLLM gradients), and then
measures (dense float32 weights of base and variant beside each other, or beside a model of them).
"""

from dataclasses import dataclass

from serve_app.domain.units import GIB, MIB, format_bytes
from serve_app.quantize.recipes import Awq, Copy, Gguf, Gptq, LlmCompressor, Recipe, SqueezeLlm
from serve_app.quantize.targets import Linear

PROCESS_BYTES = 640 * MIB
"""Python with torch, transformers and llm-compressor: 580 MiB measured."""
CHECK_TOKENS = 256
"""Of the longest text that the forward passes read."""
_SQUEEZE_WINDOW_BYTES, _FP32_PARAMETERS = 4 * GIB, 2 * 10**9  # of make_squeezellm
_INVERSE_COPIES = 3
"""Of the largest Hessian, while it is inverted: itself, its Cholesky factor, the inverse."""


@dataclass(frozen=True)
class JobFacts:
    """Of the base: all parameters, its linear layers, the model's width and vocabulary."""

    parameters: int
    linears: tuple[Linear, ...]
    hidden_size: int
    vocab_size: int


@dataclass(frozen=True)
class MemoryBound:
    """Bytes by part, of the two phases of which the larger one counts."""

    making: dict[str, int]
    measuring: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """What the machine must have available."""
        return PROCESS_BYTES + max(sum(self.making.values()), sum(self.measuring.values()))

    def describe(self) -> str:
        """`at most 64.3 GiB (dense float32 weights 59.8 GiB, ...)`: the larger phase's parts."""
        larger = max(self.making, self.measuring, key=lambda parts: sum(parts.values()))
        parts = {"libraries": PROCESS_BYTES, **larger}
        shown = sorted(parts.items(), key=lambda part: -part[1])
        listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in shown if size)
        phase = "making" if larger is self.making else "measuring"
        return f"at most {format_bytes(self.total_bytes)}, while {phase} ({listed})"


def job_bound(facts: JobFacts, recipe: Recipe) -> MemoryBound:
    """The bound for making this recipe's variant of this base on CPU."""
    largest = max((each.weights for each in facts.linears), default=0)
    logits = 3 * CHECK_TOKENS * facts.vocab_size * 4
    measuring = {"dense float32 weights": 8 * facts.parameters, "logits": logits}
    if not isinstance(recipe.make, Copy):
        measuring["comparison of the largest layer"] = 16 * largest
    return MemoryBound(_making(facts, recipe, largest), measuring)


def _making(facts: JobFacts, recipe: Recipe, largest: int) -> dict[str, int]:
    model = 2 * facts.parameters
    match recipe.make:
        case Copy():
            return {}
        case Gguf():
            return {"weights": model, "float32 copy": 4 * largest, "file": model}
        case SqueezeLlm():
            wide = 4 if facts.parameters <= _FP32_PARAMETERS else 2
            all_linear = 4 * sum(each.weights for each in facts.linears)
            return {
                "weights": model,
                "model": wide * facts.parameters,
                "gradients": min(_SQUEEZE_WINDOW_BYTES, all_linear) + 4 * largest,
                "k-means": 24 * largest,
            }
        case LlmCompressor() as made:
            tokens = recipe.calibration.samples * recipe.calibration.length_tokens
            widest = max((max(each.inputs, each.outputs) for each in facts.linears), default=0)
            parts = {"model": model, "result": model, "float32 copy of a layer": 16 * largest}
            if recipe.needs_calibration:
                parts["calibration activations"] = 2 * tokens * facts.hidden_size * 2
                parts["activations in a layer"] = 4 * recipe.calibration.length_tokens * widest * 4
            if any(isinstance(step, Gptq) for step in made.steps):
                parts["Hessians"] = _hessians(facts)
            if any(isinstance(step, Awq) for step in made.steps):
                parts["inputs of AWQ's search"] = 4 * tokens * widest
                parts["weights of AWQ's search"] = 4 * _largest_block(facts)
            return parts


def _hessians(facts: JobFacts) -> int:
    """All of one decoder layer's at once, and the largest one's inverse."""
    blocks: dict[str, int] = {}
    largest = 0
    for each in facts.linears:
        size = 4 * each.inputs**2
        blocks[each.block] = blocks.get(each.block, 0) + size
        largest = max(largest, size)
    return max(blocks.values(), default=0) + _INVERSE_COPIES * largest


def _largest_block(facts: JobFacts) -> int:
    blocks: dict[str, int] = {}
    for each in facts.linears:
        blocks[each.block] = blocks.get(each.block, 0) + each.weights
    return max(blocks.values(), default=0)
