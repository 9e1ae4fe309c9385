"""Measure variants' tokens per second in real engines, each in a process of its own.

Engines are loaded one after another and stay alive, idle, together: a round then costs seconds of
generating and no loading, and its engines are measured within moments of each other. Where memory
does not hold all, they come in groups, the baseline in each.
"""

import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from serve_app.domain.errors import BuildError, EngineError
from serve_app.quantize.gate_process import ENGINE_ENV
from serve_app.reference.speed import (
    BATCHES,
    TOKENS,
    Result,
    Sample,
    block_order,
    engine_bytes,
    groups,
)
from serve_app.reference.speed_process import PROMPT_TOKENS

PROCESS = "serve_app.reference.speed_process"
LOAD_TIMEOUT_S = 300.0
BATCH_TIMEOUT_S = 300.0
LOG_LINES = 25
MEMORY_SHARE = 0.8
"""Of what is available when the run starts; others on the machine want some, too."""

Told = Callable[[str, str], None]
"""(variant, what happens to it)."""


@dataclass(frozen=True)
class Contestant:
    """What to measure: a folder, the engine kind that runs it (`vllm`, `llamacpp`), its dtype."""

    name: str
    folder: Path
    kind: str
    dtype: str

    @property
    def weights_bytes(self) -> int:
        """Of the weights' files."""
        files = [*self.folder.glob("*.safetensors"), *self.folder.glob("*.gguf")]
        return sum(path.stat().st_size for path in files)


@dataclass(frozen=True)
class Plan:
    """How to measure: `rounds` blocks per group, every batch size in each."""

    rounds: int = 3
    batches: tuple[int, ...] = BATCHES
    tokens: int = TOKENS
    threads: int = 1
    seed: int = 240


class Engine:
    """A child process that answers over a pipe; see `speed_process`."""

    def __init__(self, name: str, process: subprocess.Popen[str], answers: int, log: Path) -> None:
        self._name, self._process, self._log = name, process, log
        self._answers, self._buffer = answers, b""

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """The next answer. Raises `EngineError` when the process ends or is silent so long."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._answers], [], [], left_s)[0]:
                raise EngineError(f"{self._name}: no answer in {timeout_s:g} s. {self._said()}")
            chunk = os.read(self._answers, 1 << 16)
            if not chunk:
                code = self._process.wait()
                raise EngineError(f"{self._name}: ended with exit code {code}. {self._said()}")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def measure(self, batch: int, tokens: int, seed: int) -> dict[str, Any]:
        """Have it generate; `tokens`, `wall_s`, `cpu_s`. Raises `EngineError`."""
        assert self._process.stdin is not None
        try:
            request = json.dumps({"batch": batch, "tokens": tokens, "seed": seed})
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise EngineError(f"{self._name}: has ended. {self._said()}") from None
        return self.hear(BATCH_TIMEOUT_S)

    def _said(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        causes = [line for line in lines if "Error: " in line or "Exception: " in line]
        return "It said:\n" + "\n".join(causes[-3:] or lines[-LOG_LINES:])


@contextmanager
def start_engine(contestant: Contestant, plan: Plan, log: Path) -> Iterator[Engine]:
    """The engine's process; ended and waited for at the end, whatever happens."""
    order = {
        "kind": contestant.kind, "folder": str(contestant.folder), "dtype": contestant.dtype,
        "max_batch": max(plan.batches), "threads": plan.threads,
    }  # fmt: skip
    answers, says = os.pipe()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", PROCESS, str(says), json.dumps(order)],
            env=os.environ | ENGINE_ENV | {"OMP_NUM_THREADS": str(plan.threads)},
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
            pass_fds=[says], text=True,
        )  # fmt: skip
    os.close(says)
    try:
        yield Engine(contestant.name, process, answers, log)
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
        os.close(answers)


def run_speed(
    contestants: Sequence[Contestant],
    baseline: str,
    plan: Plan,
    *,
    label: str,
    have_bytes: int | None = None,
    told: Told = lambda name, state: None,
) -> Result:
    """Measure all. A variant whose engine fails is told in `failed`; the others go on.

    `have_bytes`: memory for the engines (default: most of what is available). Raises `ConfigError`
    where not even two engines fit, `BuildError` where the baseline itself cannot be measured.
    """
    known = {each.name: each for each in contestants}
    need = {name: engine_bytes(each.weights_bytes) for name, each in known.items()}
    if have_bytes is None:
        have_bytes = int(psutil.virtual_memory().available * MEMORY_SHARE)
    rng = random.Random(plan.seed)
    samples: list[Sample] = []
    facts: dict[str, dict[str, str]] = {}
    failed: dict[str, str] = {}
    load_before = os.getloadavg()[0]
    for names in groups(need, baseline, have_bytes):
        first_block = 1 + max((sample.block for sample in samples), default=-1)
        group = [known[name] for name in names]
        samples += _measure_group(group, plan, first_block, rng, facts, failed, told)
        if baseline in failed:
            raise BuildError(f"the baseline cannot be measured: {failed[baseline]}")
    return Result(
        baseline=baseline,
        label=label,
        threads=plan.threads,
        tokens=plan.tokens,
        prompt_tokens=PROMPT_TOKENS,
        samples=tuple(sample for sample in samples if sample.variant not in failed),
        facts=facts,
        failed=failed,
        machine=_machine() | {"load_before": f"{load_before:.2f}"},
    )


def _measure_group(
    group: Sequence[Contestant],
    plan: Plan,
    first_block: int,
    rng: random.Random,
    facts: dict[str, dict[str, str]],
    failed: dict[str, str],
    told: Told,
) -> list[Sample]:
    """Load the group's engines, the baseline first, then go round; fills `facts`, `failed`."""
    samples: list[Sample] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quantile-speed-")))
        engines: dict[str, Engine] = {}
        for each in group:
            told(each.name, "loading")
            engine = stack.enter_context(start_engine(each, plan, scratch / f"{each.name}.log"))
            try:
                facts[each.name] = engine.hear(LOAD_TIMEOUT_S)["facts"] | {"dtype": each.dtype}
                engines[each.name] = engine
            except EngineError as error:
                failed[each.name] = str(error)
                told(each.name, "failed")
        if group[0].name in failed:  # nothing to compare with
            return samples
        for round_ in range(plan.rounds):
            for name in block_order([n for n in engines if n not in failed], rng):
                told(name, f"round {round_ + 1} of {plan.rounds}")
                try:
                    for batch in plan.batches:
                        seed = plan.seed + round_
                        answer = engines[name].measure(batch, plan.tokens, seed)
                        samples.append(Sample(name, first_block + round_, batch, **answer))
                except EngineError as error:
                    failed[name] = str(error)
                    told(name, "failed")
    return samples


def _machine() -> dict[str, str]:
    """What the figures hold for."""
    model, flags = "unknown", ""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() == "flags":
                flags = value
                break
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
    have = [name for name in wanted if name in flags.split()]
    return {
        "cpu": model,
        "instructions": " ".join(have) or "none of " + " ".join(wanted),
        "cores": str(psutil.cpu_count(logical=True)),
    }
