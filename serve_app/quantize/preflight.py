"""Whether a checkpoint can be made into a variant, and served: findings, from headers alone.

Pure but for `check_job`, which looks at this machine.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serve_app.domain.gpu import GpuProfile
from serve_app.domain.quant import QuantMethod, stored_alike
from serve_app.domain.units import format_bytes
from serve_app.node.host import HostMemory
from serve_app.planning.weights import GGUF_BITS
from serve_app.quantize.dimensions import check_dimensions
from serve_app.quantize.files import check_files
from serve_app.quantize.findings import Finding, error, require_none, warning
from serve_app.quantize.memory import JobFacts, job_bound
from serve_app.quantize.recipes import Gguf, LlmCompressor, Recipe, SqueezeLlm
from serve_app.quantize.support import (
    GGUF_PLUGIN,
    LLAMACPP_WHEEL,
    Format,
    How,
    format_of,
    installed,
    served_here,
    this_machine,
)
from serve_app.quantize.support_cpu import Cpu
from serve_app.quantize.targets import is_covered, linears
from serve_app.store.inspect import CheckpointContents
from serve_app.store.source import LocalSource

SMALL_PARAMETERS = 10**9
_SCALE_BYTES = 2
_SQUEEZE_SHARE = 0.0045


@dataclass(frozen=True)
class Target:
    """Where a variant is to run: `dtype` by vLLM's names, and what is installed there."""

    machine: Cpu | GpuProfile
    engine: str
    dtype: str
    named: bool = False
    """The user named the GPU: what does not run there itself is an error, not a warning."""
    tensor_parallel: int = 1
    has_llamacpp: bool = True
    has_gguf_plugin: bool = False


def check_making(base: CheckpointContents, recipe: Recipe, target: Target) -> Iterator[Finding]:
    """Findings about making the recipe's variant of this base, and running it on the target."""
    scheme = base.checkpoint.scheme
    if scheme.method is not QuantMethod.UNQUANTIZED or base.checkpoint.twin_of is not None:
        yield error(
            "format",
            f"a plain 16-bit checkpoint to make {recipe.scheme.describe()} of",
            base.checkpoint.describe(),
            "name the checkpoint that it was made of, or check it as it is: "
            f"--method {scheme.method}",
        )
        return
    yield from check_dimensions(base, recipe, target.machine, target.tensor_parallel)
    yield from check_running(format_of(recipe), target)
    yield from check_gain(base, recipe)


def check_serving(
    found: CheckpointContents, stored: Format, method: QuantMethod, target: Target
) -> Iterator[Finding]:
    """Findings about serving a quantized checkpoint, declared to be of `method`, as it is."""
    declared_other = found.checkpoint.scheme.method is not method
    if declared_other and not _may_be(found, method):
        yield error(
            "method",
            f"a checkpoint of method {method}, or a plain one to quantize",
            found.checkpoint.describe(),
            f"declare --method {found.checkpoint.scheme.method}, or point at one of {method} "
            "or at its base",
        )
        return
    yield from check_running(stored, target)


def check_running(stored: Format, target: Target) -> Iterator[Finding]:
    """What the support table says of this format on the target."""
    served = served_here(
        stored,
        target.engine,
        target.dtype,
        target.machine,
        has_llamacpp=target.has_llamacpp,
        has_gguf_plugin=target.has_gguf_plugin,
    )
    where = target.machine.value if isinstance(target.machine, Cpu) else target.machine.name
    need = f"an engine that runs it on {where} with dtype {target.dtype}"
    if served.how is How.REFUSED:
        yield error("dtype_or_engine", need, served.reason, served.fix)
    elif served.how is How.AS_TWIN:
        make = error if target.named else warning
        fix = served.fix
        if not target.named:
            fix = f"nothing: it is judged and served as its dense twin; or {fix}"
        yield make("kernel", need, served.reason, fix)
    elif not served.native:
        yield warning("not_native", f"kernels for it on {where}", served.reason, "know of it")
    elif served.reason:
        yield warning("note", need, served.reason, "nothing")


def check_gain(base: CheckpointContents, recipe: Recipe) -> Iterator[Finding]:
    """A warning, with the figures, where embeddings are so much of it that little is gained."""
    parameters = parameters_of(base)
    if parameters >= SMALL_PARAMETERS or recipe.method is QuantMethod.UNQUANTIZED:
        return
    before = base.checkpoint.weight_bytes
    after = quantized_bytes(base, recipe)
    in_linears = sum(each.n_bytes for each in linears(base.tensors))
    left = before - in_linears
    kept = "" if isinstance(recipe.make, Gguf) else ", which stay in 16 bits"
    yield warning(
        "small_model",
        "1B parameters or more for quantization to gain much",
        f"{parameters / 1e6:,.1f}M: {format_bytes(before)} would be about {format_bytes(after)} "
        f"({after / before:.2f} of it), since {format_bytes(left)} ({left / before:.0%}) are "
        f"embeddings, head and norms{kept}",
        "expect little: measure speed and quality before choosing it",
    )


def parameters_of(base: CheckpointContents) -> int:
    """Of a plain checkpoint."""
    sizes = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
    return sum(each.n_bytes // sizes.get(each.dtype, 2) for each in base.tensors.values())


def quantized_bytes(base: CheckpointContents, recipe: Recipe) -> int:
    """About the variant's bytes: weights, scales and zero points; the rest as it is.

    Per layer N*K*bits/8 + 2*N*K/group [+ N*K*bits/8/group]; GGUF quantizes the embeddings too.
    """
    total = base.checkpoint.weight_bytes
    made = recipe.make
    if isinstance(made, Gguf):
        return round(total * GGUF_BITS.get(recipe.scheme.bits, 16) / 16)
    for each in linears(base.tensors):
        size = float(each.n_bytes)
        if isinstance(made, SqueezeLlm):
            tables = each.outputs * 2**made.bits * _SCALE_BYTES
            size = each.weights * made.bits / 8 + tables + 6 * _SQUEEZE_SHARE * each.weights
        elif isinstance(made, LlmCompressor):
            rule = next((r for r in made.layers if is_covered(r, made.keep, each.name)), None)
            if rule is not None:
                numbers = rule.weights
                groups = each.weights / (numbers.group_size or each.inputs)
                size = each.weights * numbers.bits / 8 + _SCALE_BYTES * groups
                size += 0 if numbers.symmetric else groups * numbers.bits / 8
        total += round(size) - each.n_bytes
    return total


def check_memory(base: CheckpointContents, recipe: Recipe, available: int) -> Iterator[Finding]:
    """Whether the job's bound fits into the bytes that are available."""
    bound = job_bound(job_facts(base), recipe)
    if bound.total_bytes > available:
        yield error(
            "memory",
            f"{format_bytes(bound.total_bytes)} for the job: {bound.describe()}",
            f"{format_bytes(available)} available",
            "end other processes, take a larger machine, or lower calibration.samples if "
            "activations are most of it",
        )


def job_facts(base: CheckpointContents) -> JobFacts:
    """What the bound follows from. A configuration that lacks a size counts as 0 there."""
    config = base.config.get("text_config") or base.config
    return JobFacts(
        parameters_of(base),
        linears(base.tensors),
        int(config.get("hidden_size") or 0),
        int(config.get("vocab_size") or 0),
    )


def this_target(recipe: Recipe) -> Target:
    """This machine with the engines installed on it."""
    return Target(
        this_machine(),
        recipe.engine.kind,
        recipe.engine.dtype,
        has_llamacpp=installed(LLAMACPP_WHEEL),
        has_gguf_plugin=installed(GGUF_PLUGIN),
    )


def check_job(base: Path, recipe: Recipe, out: Path) -> list[str]:
    """Everything that can be known before `recipe` is made of the folder `base` on this machine.

    Returns lines to show: the memory bound, then warnings. Raises `ConfigError` that lists every
    error, each with what to do.
    """
    where = f"{base} cannot become {recipe.name}"
    files = check_files(LocalSource(base), hash_files=False)
    require_none(files.findings, where)
    assert files.contents is not None
    contents = files.contents
    found = [
        *files.findings,
        *check_making(contents, recipe, this_target(recipe)),
        *check_memory(contents, recipe, HostMemory().free_bytes()),
        *check_disk(contents, recipe, free_on_disk(out)),
    ]
    require_none(found, where)
    bound = f"memory: {job_bound(job_facts(contents), recipe).describe()}"
    return [bound, *(each.describe() for each in found)]


def check_disk(base: CheckpointContents, recipe: Recipe, free: int) -> Iterator[Finding]:
    """Whether the variant and its dense twin have room where they are made."""
    need = quantized_bytes(base, recipe) + base.checkpoint.weight_bytes
    if need > free:
        yield error(
            "disk",
            f"{format_bytes(need)} for the variant and its twin",
            f"{format_bytes(free)} free",
            "free some, or name another --out",
        )


def free_on_disk(out: Path) -> int:
    """Bytes free where `out` is to appear."""
    place = next(each for each in out.absolute().parents if each.is_dir())
    return shutil.disk_usage(place).free


def _may_be(found: CheckpointContents, method: QuantMethod) -> bool:
    """Containers alone do not tell GPTQ from AWQ and round-to-nearest."""
    checkpoint = found.checkpoint
    return not checkpoint.recorded and stored_alike(method, checkpoint.scheme.method)
