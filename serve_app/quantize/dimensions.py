"""Whether a model's matrices can be cut into a recipe's groups, packed words and GPU shares."""

from collections.abc import Callable, Iterator, Sequence

from serve_app.domain.errors import CheckpointError
from serve_app.domain.gpu import GpuProfile
from serve_app.planning.shape import ModelShape, shape_from_config
from serve_app.quantize.findings import Finding, error, warning
from serve_app.quantize.recipes import Gguf, LayerRule, LlmCompressor, Recipe, SqueezeLlm
from serve_app.quantize.support_cpu import Cpu
from serve_app.quantize.targets import Linear, is_covered, linears
from serve_app.store.inspect import CheckpointContents

GROUP_SIZES = (128, 64, 32)
PACK = 8
"""4-bit values in a word of 32 bits: AutoGPTQ and AutoAWQ pack along outputs."""
CPU_STEP = 32
"""vLLM's CPU kernel for 4-bit weights takes inputs and outputs in multiples of this."""
MARLIN_INPUTS, MARLIN_OUTPUTS = 128, 64
"""vLLM's Marlin kernel takes multiples of these (`quantization/utils/marlin_utils.py`)."""
KQUANT_BLOCK, PLAIN_BLOCK, CODES = 256, 32, 8
_ROW_PARALLEL = ("o_proj", "down_proj", "w2", "out_proj")
"""Split along inputs over GPUs; the others along outputs."""


def check_dimensions(
    base: CheckpointContents, recipe: Recipe, machine: Cpu | GpuProfile, tensor_parallel: int = 1
) -> Iterator[Finding]:
    """Findings about matrices that do not divide."""
    layers = linears(base.tensors)
    if not layers:
        yield error("layers", "linear layers to quantize", "none", "name a decoder's checkpoint")
        return
    if tensor_parallel > 1:
        yield from _heads(base, tensor_parallel)
    made = recipe.make
    if isinstance(made, LlmCompressor):
        left = list(layers)
        for rule in made.layers:
            covered = [each for each in left if is_covered(rule, made.keep, each.name)]
            left = [each for each in left if each not in covered]
            if not covered:
                have, fix = "none of that name", "change `of`, or `keep`, in the recipe"
                yield error("layers", f"linear layers {', '.join(rule.of)}", have, fix)
            shares = [_share(each, tensor_parallel) for each in covered]
            yield from _rule(rule, made.layout, shares, machine, tensor_parallel)
    elif isinstance(made, SqueezeLlm):
        need = f"input channels in multiples of {CODES}"
        fix = "take GPTQ or AWQ"
        yield from _divides(layers, "inputs", lambda each: each.inputs % CODES == 0, need, fix)
    elif isinstance(made, Gguf) and made.type != "F16":
        block = KQUANT_BLOCK if "K" in made.type else PLAIN_BLOCK
        yield from _gguf_blocks(layers, made.type, block)


def _rule(
    rule: LayerRule, layout: str, layers: Sequence[Linear], machine: Cpu | GpuProfile, tp: int
) -> Iterator[Finding]:
    numbers = rule.weights
    size, split = numbers.group_size, f" on each of {tp} GPUs" if tp > 1 else ""
    if size is not None:
        fits = [each for each in GROUP_SIZES if all(layer.inputs % each == 0 for layer in layers)]
        fix = (
            f"--group-size {' or '.join(map(str, fits))}, which divides all of them"
            if fits
            else "one scale per channel (`per: channel`)"
        )
        need = f"input channels in multiples of the group size {size}{split}"
        found = list(
            _divides(layers, "group_size", lambda each: each.inputs % size == 0, need, fix)
        )
        yield from found
        if found:
            return
    fix = "leave these layers as they are (`keep`), or take INT8 W8A8"
    if numbers.bits == 4 and numbers.kind == "int" and layout in ("gptq", "awq"):
        need = f"outputs{' and inputs' if layout == 'gptq' else ''} in multiples of {PACK}{split}"
        yield from _divides(layers, "packing", lambda each: _packs(each, layout), need, fix)
    if numbers.bits != 4 or rule.activations is not None or numbers.kind != "int":
        return
    if isinstance(machine, Cpu):
        need = f"inputs and outputs in multiples of {CPU_STEP}, as vLLM's CPU kernel takes them"
        yield from _divides(layers, "dimension", _fits_cpu, need, fix)
    else:
        need = f"inputs in multiples of {MARLIN_INPUTS} and outputs of {MARLIN_OUTPUTS}{split}"
        fix = "expect a slower kernel, or none: try it, or leave these layers as they are (`keep`)"
        yield from _divides(layers, "dimension", _fits_marlin, need, fix, warning)


def _packs(layer: Linear, layout: str) -> bool:
    return layer.outputs % PACK == 0 and (layout == "awq" or layer.inputs % PACK == 0)


def _fits_cpu(layer: Linear) -> bool:
    return layer.inputs % CPU_STEP == 0 and layer.outputs % CPU_STEP == 0


def _fits_marlin(layer: Linear) -> bool:
    return layer.inputs % MARLIN_INPUTS == 0 and layer.outputs % MARLIN_OUTPUTS == 0


def _divides(
    layers: Sequence[Linear],
    code: str,
    fits: Callable[[Linear], bool],
    need: str,
    fix: str,
    make: Callable[[str, str, str, str], Finding] = error,
) -> Iterator[Finding]:
    odd = [layer for layer in layers if not fits(layer)]
    if odd:
        first = odd[0]
        have = f"{first.name} with {first.inputs} inputs and {first.outputs} outputs"
        have += f", and {len(odd) - 1} more" if len(odd) > 1 else ""
        yield make(code, need, have, fix)


def _gguf_blocks(layers: Sequence[Linear], kind: str, block: int) -> Iterator[Finding]:
    """llama.cpp stores rows that K-quants cannot cut in a wider type of blocks of 32."""
    need = f"input channels in multiples of {PLAIN_BLOCK}"
    fix = "take `gguf-f16`"
    yield from _divides(layers, "inputs", lambda each: each.inputs % PLAIN_BLOCK == 0, need, fix)
    if block != PLAIN_BLOCK:
        need = f"input channels in multiples of {block} for {kind} throughout"
        fix = "nothing: llama.cpp stores those rows wider, so the file is larger than the name says"
        yield from _divides(
            layers, "inputs_wider", lambda each: each.inputs % block == 0, need, fix, warning
        )


def _share(layer: Linear, tp: int) -> Linear:
    """What one GPU has of it; sizes that do not divide are told by `_heads`."""
    if layer.name.endswith(_ROW_PARALLEL):
        return Linear(layer.name, layer.outputs, layer.inputs // tp, layer.n_bytes // tp)
    return Linear(layer.name, layer.outputs // tp, layer.inputs, layer.n_bytes // tp)


def _heads(base: CheckpointContents, tp: int) -> Iterator[Finding]:
    try:
        shape: ModelShape = shape_from_config(base.config)
    except CheckpointError as fault:
        have, fix = str(fault), "check the split by hand, or set --tensor-parallel 1"
        yield warning("tensor_parallel", "the model's heads to check the split", have, fix)
        return
    splits = [n for n in (8, 4, 2, 1) if n < tp and _splits(shape, n)]
    fix = f"--tensor-parallel {splits[0]}" if splits else "another model"
    if not _splits(shape, tp):
        have = (
            f"{shape.n_heads} heads, {shape.n_kv_heads} KV heads, {shape.intermediate_size} "
            "feed-forward channels"
        )
        need = f"heads, KV heads and feed-forward channels that {tp} GPUs can share"
        yield error("tensor_parallel", need, have, fix)


def _splits(shape: ModelShape, tp: int) -> bool:
    kv = shape.n_kv_heads
    shared = kv % tp == 0 or tp % kv == 0
    return shape.n_heads % tp == 0 and shared and shape.intermediate_size % tp == 0
