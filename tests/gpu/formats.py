"""Recipes whose format CPUs have no kernel for: the gate judges each in an engine on the GPU.

`python -m tests.gpu.formats` makes those that are missing; it needs the quantizers' environment.
"""

import subprocess
import sys
from collections.abc import Sequence

from serve_app.domain.errors import BuildError, CheckpointError
from serve_app.quantize.catalogue import recipes
from serve_app.quantize.gate import Candidate, GateResult, run_gate
from serve_app.quantize.recipes import Recipe
from serve_app.quantize.support import How, format_of, served_here
from serve_app.quantize.support import here as served_on_this_machine
from serve_app.quantize.support_cpu import Cpu
from serve_app.reference.locate import resolve
from tests.gpu.machine import FAMILY, Machine, find_machine
from tests.gpu.scenarios import Figures


def formats_without_cpu_kernel(machine: Machine) -> tuple[Figures, list[str]]:
    """What the gate says of each. On the host, of the family, so that the scenario itself is run.

    A format that this GPU does not run either is named with the reason, and is no fault. Raises
    `CheckpointError` as `require_made`.
    """
    require_made(machine)
    here, elsewhere = judged_here(machine)
    candidates = {
        name: Candidate(recipe, resolve(f"reference://{name}")) for name, recipe in here.items()
    }
    wrong: list[str] = []
    results: dict[str, GateResult] = {}
    try:
        run_gate(candidates, results.__setitem__)
    except BuildError as error:
        wrong.append(str(error))
    wrong += [f"{name}: {fault}" for name, each in results.items() for fault in each.failures]
    judged = {name: each.describe() for name, each in results.items()}
    return {"judged": judged, "not_on_this_device": elsewhere}, wrong


def require_made(machine: Machine) -> None:
    """Raise `CheckpointError`, before anything takes time, if a variant to judge was not made."""
    if missing := not_made(machine):
        raise CheckpointError(
            f"{len(missing)} of the variants to judge here are not made: {', '.join(missing)}; "
            f"make them with `quantile {' '.join(build_command(missing))}` (`python -m "
            "tests.gpu.formats` does), or carry $QUANTILE_HOME here from a machine that has them"
        )


def not_made(machine: Machine) -> list[str]:
    """Names of the variants that are judged on this device and are not in the cache."""
    return [name for name in judged_here(machine)[0] if not _is_made(name)]


def build_command(names: Sequence[str]) -> list[str]:
    """Arguments of `quantile` that make these."""
    return ["reference", "build", *(word for name in names for word in ("--only", name))]


def judged_here(machine: Machine) -> tuple[dict[str, Recipe], dict[str, str]]:
    """Recipes that an engine runs on this device, and of the others why none does."""
    here: dict[str, Recipe] = {}
    elsewhere: dict[str, str] = {}
    for name in without_cpu_kernel() if machine.is_gpu else FAMILY:
        recipe = recipes()[name]
        served = served_on_this_machine(recipe)
        if served.how is How.AS_ITSELF:
            here[name] = recipe
        else:
            elsewhere[name] = served.reason
    return here, elsewhere


def _is_made(name: str) -> bool:
    try:
        resolve(f"reference://{name}")
    except CheckpointError:
        return False
    return True


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


def main() -> None:
    """Make what is missing, for the device that the command line names (`gpu`, `host`)."""
    missing = not_made(find_machine(sys.argv[1] if len(sys.argv) > 1 else "gpu"))
    if missing:
        command = [sys.executable, "-m", "serve_app.cli", *build_command(missing)]
        sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
