"""Tokens per second of variants at given batch sizes, and their ratio to a baseline: arithmetic.

A *block* is one pass over engines that are alive together, the baseline among them, in an order
drawn anew: what disturbs the machine meets all of a block, so a ratio is taken inside a block and
only then summed up over blocks. Everything here is pure; `speed_run` does the measuring.
"""

import random
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from serve_app.domain.errors import ConfigError, InvalidRunError
from serve_app.domain.units import MIB, format_bytes

SCHEMA_VERSION = 1
BATCHES = (1, 8, 32)
TOKENS = 64
"""Generated per sequence."""

ENGINE_BYTES = 900 * MIB
"""Torch, vLLM and the KV cache of one engine process; measured 600 to 750 MiB besides weights."""
WEIGHTS_HELD = 2
"""While it loads, an engine holds weights as they are stored and as its kernels want them."""


@dataclass(frozen=True)
class Sample:
    """One batch of one engine: `tokens` generated in `wall_s`, prompts included.

    `cpu_s` is the engine process's CPU time; None where it was not told.
    """

    variant: str
    block: int
    batch: int
    tokens: int
    wall_s: float
    cpu_s: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens of all sequences per wall second."""
        return self.tokens / self.wall_s


@dataclass(frozen=True)
class Spread:
    """Median and range over `n` blocks."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Speed:
    """One variant at one batch size. `ratio`: to the baseline in the same block, None without.

    `cpu_ratio`: the same of tokens per CPU second of the engine's process. With one thread and a
    core of its own it is `ratio`; where others want the core, it still tells what the kernels cost.
    """

    variant: str
    batch: int
    tokens_per_s: Spread
    ratio: Spread | None
    cpu_ratio: Spread | None


@dataclass(frozen=True)
class Result:
    """All of a run. `label` says what the weights are; `failed`: why a variant has no figures.

    `facts`: by variant, engine, kernels and dtype. `machine`: CPU, cores, threads, load.
    """

    baseline: str
    label: str
    threads: int
    tokens: int
    prompt_tokens: int
    samples: tuple[Sample, ...]
    facts: Mapping[str, Mapping[str, str]]
    failed: Mapping[str, str]
    machine: Mapping[str, str]


def spread(values: Collection[float]) -> Spread:
    """Raises `InvalidRunError` if there are none: no samples is not 0 tokens/s."""
    if not values:
        raise InvalidRunError("no samples: need at least one block that measured this")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def speeds(samples: Sequence[Sample], baseline: str) -> list[Speed]:
    """Per variant and batch, in the order of first appearance. Raises `InvalidRunError`.

    The ratio is the median of the blocks' ratios, not the ratio of the medians: a block that ran on
    a busy machine slows both sides of its ratio.
    """
    measured: dict[tuple[str, int, int], Sample] = {}
    for sample in samples:
        if not sample.wall_s > 0 or sample.tokens <= 0:
            raise InvalidRunError(
                f"{sample.variant}, batch {sample.batch}: {sample.tokens} tokens in "
                f"{sample.wall_s} s; need both above 0"
            )
        key = (sample.variant, sample.batch, sample.block)
        if key in measured:
            raise InvalidRunError(f"{sample.variant}, batch {sample.batch}: twice in one block")
        measured[key] = sample
    found = []
    for variant, batch in dict.fromkeys((s.variant, s.batch) for s in samples):
        own = [each for each in measured.values() if (each.variant, each.batch) == (variant, batch)]
        pairs = [
            (each, measured[baseline, batch, each.block])
            for each in own
            if (baseline, batch, each.block) in measured
        ]
        ratios = [each.tokens_per_s / other.tokens_per_s for each, other in pairs]
        cpu_ratios = [
            (each.tokens / each.cpu_s) / (other.tokens / other.cpu_s)
            for each, other in pairs
            if each.cpu_s and other.cpu_s
        ]
        found.append(
            Speed(
                variant,
                batch,
                spread([each.tokens_per_s for each in own]),
                spread(ratios) if ratios else None,
                spread(cpu_ratios) if cpu_ratios else None,
            )
        )
    return found


def engine_bytes(weights_bytes: int) -> int:
    """Memory to expect of one engine process, while it loads."""
    return ENGINE_BYTES + WEIGHTS_HELD * weights_bytes


def groups(need_bytes: Mapping[str, int], baseline: str, have_bytes: int) -> list[tuple[str, ...]]:
    """Which engines live together: as few groups as fit first, the baseline in each of them.

    Raises `ConfigError` where the baseline and one other do not fit `have_bytes`, or no baseline
    is among them.
    """
    if baseline not in need_bytes:
        raise ConfigError(
            f"the baseline {baseline!r} is not among {', '.join(need_bytes) or 'no variants'}"
        )
    others = {name: need for name, need in need_bytes.items() if name != baseline}
    if not others:
        return [(baseline,)]
    room = have_bytes - need_bytes[baseline]
    found: list[list[str]] = []
    left: list[int] = []
    for name, need in others.items():
        if need > room:
            raise ConfigError(
                f"{name} and {baseline} together need {format_bytes(need + need_bytes[baseline])} "
                f"of memory, have {format_bytes(max(0, have_bytes))}: end other programs"
            )
        at = next((i for i, free in enumerate(left) if free >= need), None)
        if at is None:
            found.append([])
            left.append(room)
            at = len(found) - 1
        found[at].append(name)
        left[at] -= need
    return [(baseline, *names) for names in found]


def block_order(names: Sequence[str], rng: random.Random) -> list[str]:
    """The engines of a block in an order of its own."""
    return rng.sample(list(names), len(names))


def result_to_json(result: Result) -> dict[str, Any]:
    """`speed.json`: the samples, and what follows from them."""
    derived = [asdict(each) for each in speeds(result.samples, result.baseline)]
    return {"schema_version": SCHEMA_VERSION, **asdict(result), "speeds": derived}


def result_from_json(values: Mapping[str, Any]) -> Result:
    """Back from `result_to_json`; the derived figures are not read. Raises `InvalidRunError`."""
    if values.get("schema_version") != SCHEMA_VERSION:
        raise InvalidRunError(
            f"speed.json has schema {values.get('schema_version')!r}: need {SCHEMA_VERSION}; "
            "measure anew with this version"
        )
    fields = {name: values[name] for name in Result.__dataclass_fields__}
    return Result(**fields | {"samples": tuple(Sample(**each) for each in fields["samples"])})
