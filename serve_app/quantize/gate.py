"""The gate: a variant counts as built only when the engine computes what its weights say.

Weights that load can still be wrong: a kernel that reads the nibbles in another order, scales of
another layout, rows permuted. `judge` compares the engine's logprobs with an fp32 forward pass of
the dequantized weights (and that with the base's), `weight_limit` the weights themselves with the
base's, layer by layer; `run_gate` gets the logprobs from a real engine, in a process of its own
because a wrong format may abort it.
"""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from serve_app.domain.errors import BuildError
from serve_app.quantize.recipes import Recipe, Tolerance
from serve_app.quantize.weight_limit import Weighed, recorded_layers, weigh
from serve_app.reference.logprobs import REFERENCE_NPZ, Reference, Values, load_reference

TIMEOUT_S = 300
"""Per variant. Loading and checking one takes 20 to 40 s on a busy core."""

DECIDED = 0.5
"""Probability. Below it (which name a story picks) rounding alone may swap the top two."""

SLOWEST_BYTES_PER_S = 20e6
POLL_S = 0.2
LOG_LINES = 25


@dataclass(frozen=True)
class Candidate:
    """A variant to judge: its folder and, where no engine here has its kernels, its dense twin."""

    recipe: Recipe
    folder: Path
    twin: Path | None = None

    @property
    def kind(self) -> str:
        """The engine that runs it. A twin is a plain checkpoint, which vLLM runs."""
        return "vllm" if self.twin else self.recipe.engine.kind

    @property
    def engine(self) -> str:
        """`vllm:float16`: engine and dtype."""
        return f"{self.kind}:{self.recipe.engine.dtype}"

    @property
    def served(self) -> Path:
        """The folder that the engine loads."""
        return self.twin or self.folder


@dataclass(frozen=True)
class GateResult:
    """Logprobs compared over `n_tokens` positions; differences in nats.

    `engine_*`: engine against reference. `agreement`: share of the `n_decided` positions (where
    the reference gives one token at least `DECIDED`) where the engine has the same most likely
    token. `quantization_mean`: reference against the base weights' reference. `weight_error`:
    ||W - Wq|| / ||W|| of `worst_layer`, which has the largest.
    `failures` says for each limit that is exceeded what was needed; empty means passed. None is
    what came out as no number.
    """

    n_tokens: int
    n_decided: int
    engine_mean: float | None
    engine_max: float | None
    agreement: float | None
    quantization_mean: float | None
    failures: tuple[str, ...]
    weight_error: float | None = None
    worst_layer: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return not self.failures

    def describe(self) -> str:
        """The numbers on one line."""
        weights = (
            f", weights {self.weight_error:.4f} at most" if self.weight_error is not None else ""
        )
        return (
            f"|dlogprob| engine {shown(self.engine_mean, '.4f')} mean "
            f"{shown(self.engine_max, '.3f')} max, "
            f"quantization {shown(self.quantization_mean, '.4f')} mean, "
            f"same top token {shown(self.agreement, '.2%')} of {self.n_decided} decided{weights}"
        )


def shown(value: float | None, form: str) -> str:
    """The value, or `not a number`."""
    return "not a number" if value is None else format(value, form)


Judged = Callable[[str, GateResult], None]
Gate = Callable[[Mapping[str, Candidate], Judged], None]
"""Judge candidates, telling each result as it comes. Raises `BuildError`."""


def judge(tolerance: Tolerance, reference: Reference, logprobs: Values, best: Values) -> GateResult:
    """Compare the engine's logprobs and most likely tokens, row after row, with the reference."""
    have, need = logprobs, np.concatenate(list(reference.logprobs))
    base = np.concatenate(list(reference.base_logprobs))
    if have.shape != need.shape:
        raise BuildError(f"the engine gave {have.size} logprobs, the reference has {need.size}")
    engine = np.abs(have - need)
    mean, quantization = float(engine.mean()), float(np.abs(need - base).mean())
    decided = np.concatenate(list(reference.best_logprobs)) >= math.log(DECIDED)
    same = best == np.concatenate(list(reference.best))
    agreement = float(same[decided].mean()) if decided.any() else math.nan
    failures = []
    # Written so that a NaN fails.
    if not mean <= tolerance.engine:
        failures.append(
            f"engine differs from its own dequantized weights by {mean:.4f} nats per token: "
            f"need <= {tolerance.engine} ({tolerance.reason})"
        )
    largest = float(engine.max())
    if tolerance.engine_max is not None and not largest <= tolerance.engine_max:
        failures.append(
            f"engine differs by {largest:.3f} nats at one position: need <= {tolerance.engine_max}"
        )
    if not agreement >= tolerance.agreement:
        failures.append(
            f"same top token at {agreement:.2%} of {decided.sum()} decided positions: "
            f"need >= {tolerance.agreement:.1%}"
        )
    if not quantization <= tolerance.quantization:
        failures.append(
            f"dequantized weights differ from the base by {quantization:.4f} nats per token: "
            f"need <= {tolerance.quantization}"
        )
    return GateResult(
        n_tokens=have.size,
        n_decided=int(decided.sum()),
        engine_mean=_finite(mean),
        engine_max=_finite(largest),
        agreement=_finite(agreement),
        quantization_mean=_finite(quantization),
        failures=tuple(failures),
    )


def with_weights(result: GateResult, weighed: Weighed) -> GateResult:
    """The result with what the weights by themselves say."""
    return replace(
        result,
        failures=(*weighed.failures, *result.failures),
        weight_error=weighed.relative,
        worst_layer=weighed.layer,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def run_gate(variants: Mapping[str, Candidate], judged: Judged) -> None:
    """Load each variant in its engine, one after another in one child process, and judge it.

    A result that failed is told, not raised. Raises `BuildError` when an engine cannot load a
    variant, dies, or takes longer than `TIMEOUT_S`: those after it are then not judged. Before any
    of that where a variant has no record of its weights' errors.
    """
    weighed = {
        name: weigh(each.recipe.gate, recorded_layers(each.folder))
        for name, each in variants.items()
    }
    with tempfile.TemporaryDirectory(prefix="quantile-gate-") as scratch:
        log = Path(scratch) / "log"
        command = [sys.executable, "-m", "serve_app.quantize.gate_process", scratch]
        for each in variants.values():
            command += [each.engine, str(each.served), str(each.folder / REFERENCE_NPZ)]
        with log.open("wb") as output:
            # A session of its own, so that the engine's processes end with it.
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            for i, (name, each) in enumerate(variants.items()):
                answer = Path(scratch) / f"{i}.npz"
                if not _wait_for(answer, process, _timeout_s(each.served)):
                    _raise_unjudged(name, each.served, process.poll(), log)
                with np.load(answer) as arrays:
                    reference = load_reference(each.folder / REFERENCE_NPZ)
                    result = judge(each.recipe.gate, reference, arrays["logprobs"], arrays["best"])
                judged(name, with_weights(result, weighed[name]))
        finally:
            _end_session(process)


def _timeout_s(folder: Path) -> float:
    """For loading and checking: more for large weights, at the pace of a network volume."""
    files = [folder] if folder.is_file() else folder.iterdir()
    return TIMEOUT_S + sum(path.stat().st_size for path in files) / SLOWEST_BYTES_PER_S


def _wait_for(answer: Path, process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether the file came before the process ended and before `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not answer.exists():
        if process.poll() is not None:
            return answer.exists()
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _end_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _raise_unjudged(name: str, folder: Path, code: int | None, log: Path) -> NoReturn:
    lines = log.read_text(errors="replace").splitlines()
    # The cause is in a worker's traceback, far above the end: "Failed core proc(s)".
    causes = [line for line in lines if re.search(r"\w(Error|Exception): ", line)]
    shown = "\n".join(causes[:3] or lines[-LOG_LINES:])
    how = "took too long" if code is None else f"ended with exit code {code}"
    raise BuildError(
        f"the engine process {how} while checking {name!r} ({folder}): need an engine that loads "
        f"it. It said:\n{shown}"
    )


def result_to_json(result: GateResult) -> dict[str, object]:
    """As stored in gate.json."""
    return asdict(result)


def result_from_json(values: Mapping[str, object]) -> GateResult:
    """Back from `result_to_json`."""
    fields = dict(values)
    failures = fields.pop("failures")
    assert isinstance(failures, list)
    return GateResult(failures=tuple(failures), **fields)  # type: ignore[arg-type]
