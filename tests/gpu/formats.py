"""Recipes whose format CPUs have no kernel for: the gate judges each in an engine on the GPU."""

from serve_app.domain.errors import BuildError, CheckpointError
from serve_app.quantize.catalogue import recipes
from serve_app.quantize.gate import Candidate, GateResult, run_gate
from serve_app.quantize.recipes import Recipe
from serve_app.quantize.support import How, format_of, here, served_here
from serve_app.quantize.support_cpu import Cpu
from serve_app.reference.locate import resolve
from tests.gpu.machine import FAMILY, Machine
from tests.gpu.scenarios import Figures


def formats_without_cpu_kernel(machine: Machine) -> tuple[Figures, list[str]]:
    """What the gate says of each. On the host, of the family, so that the scenario itself is run.

    A format that this GPU does not run either is named with the reason, and is no fault.
    """
    names = without_cpu_kernel() if machine.is_gpu else FAMILY
    candidates: dict[str, Candidate] = {}
    elsewhere: dict[str, str] = {}
    wrong: list[str] = []
    for name in names:
        recipe = recipes()[name]
        served = here(recipe)
        if served.how is not How.AS_ITSELF:
            elsewhere[name] = served.reason
            continue
        try:
            candidates[name] = Candidate(recipe, resolve(f"reference://{name}"))
        except CheckpointError as error:
            wrong.append(str(error))
    results: dict[str, GateResult] = {}
    try:
        run_gate(candidates, results.__setitem__)
    except BuildError as error:
        wrong.append(str(error))
    wrong += [f"{name}: {fault}" for name, each in results.items() for fault in each.failures]
    judged = {name: each.describe() for name, each in results.items()}
    return {"judged": judged, "not_on_this_device": elsewhere}, wrong


def without_cpu_kernel() -> tuple[str, ...]:
    """Names of the recipes that some kind of x86 CPU serves as a dense twin only, or not at all."""
    return tuple(name for name, each in recipes().items() if not _on_every_cpu(each))


def _on_every_cpu(recipe: Recipe) -> bool:
    engine = recipe.engine
    answers = (
        served_here(format_of(recipe), engine.kind, engine.dtype, cpu)
        for cpu in (Cpu.AVX512, Cpu.AMX)
    )
    return all(each.how is How.AS_ITSELF for each in answers)
