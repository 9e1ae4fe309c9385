"""What an evaluation asks, of whom, and how much: plain data, settled before anything is sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve_app.domain.errors import ConfigError
from serve_app.domain.quality import QualityBar
from serve_app.evaluate.tasks.items import TaskSet
from serve_app.routing.pin import PIN_SEPARATOR

NOISE_FLOOR = "noise-floor"
"""Name of the baseline's second pass."""


@dataclass(frozen=True)
class Sizes:
    """How much is asked; None: all there is."""

    items_per_set: int | None
    windows: int | None
    answers: int
    texts: int


FULL = Sizes(items_per_set=None, windows=200, answers=400, texts=100)
QUICK = Sizes(items_per_set=100, windows=32, answers=100, texts=12)


@dataclass(frozen=True)
class Settings:
    """Everything but where the answers go. `text`: the user's own, in place of the corpus."""

    base_url: str
    sets: tuple[TaskSet, ...]
    sizes: Sizes
    bar: QualityBar = field(default_factory=QualityBar)
    text: str | None = None
    window_tokens: int = 256
    top_k: int = 20
    seed: int = 0
    n_resamples: int = 10_000
    task_concurrency: int = 8
    logprob_concurrency: int = 1
    """Prompt log-probabilities take memory beside the engine's plan: tokens x vocabulary x 4 B."""

    @property
    def floor_concurrency(self) -> tuple[int, int]:
        """Of tasks and log-probabilities in the second pass: other batches than the first."""
        return max(1, self.task_concurrency // 2 - 1), 3 - min(2, self.logprob_concurrency)


@dataclass(frozen=True)
class Pass:
    """One model asked everything."""

    name: str
    model: str
    task_concurrency: int
    logprob_concurrency: int


def plan_passes(
    cards: Mapping[str, Mapping[str, Any]],
    settings: Settings,
    *,
    model: str | None = None,
    variants: Sequence[str] = (),
    baseline: str | None = None,
) -> tuple[str, tuple[Pass, ...]]:
    """The model's name, and its passes: the baseline, its second pass, then each variant.

    Variants are the pins of `/v1/models` (`model@variant`); where there is none, every model.
    Raises ConfigError for names that are not listed.
    """
    known = served_variants(cards, model)
    alias = next(iter(known.values())).partition(PIN_SEPARATOR)
    chosen = list(variants) or list(known)
    first = baseline or chosen[0]
    for name in (first, *chosen):
        if name not in known:
            raise ConfigError(f"no variant {name!r} is served: have {', '.join(known)}")
    if NOISE_FLOOR in known:
        raise ConfigError(f"a variant must not be called {NOISE_FLOOR!r}")
    tasks, logprobs = settings.floor_concurrency
    at = (settings.task_concurrency, settings.logprob_concurrency)
    others = [name for name in dict.fromkeys(chosen) if name != first]
    passes = (
        Pass(first, known[first], *at),
        Pass(NOISE_FLOOR, known[first], tasks, logprobs),
        *(Pass(name, known[name], *at) for name in others),
    )
    return (alias[0] if alias[1] else model or first), passes


def served_variants(cards: Mapping[str, object], model: str | None) -> dict[str, str]:
    """Each variant's id of `/v1/models` by its name: the pins, or where there is none every model.

    Raises ConfigError where there is nothing, or several models and none is named.
    """
    pinned = {
        key.partition(PIN_SEPARATOR)[2]: key
        for key in cards
        if PIN_SEPARATOR in key and (model is None or key.partition(PIN_SEPARATOR)[0] == model)
    }
    known = pinned or {key: key for key in cards if PIN_SEPARATOR not in key}
    if not known:
        raise ConfigError(f"need a model {model!r}, have {', '.join(cards) or 'none'}")
    aliases = sorted({key.partition(PIN_SEPARATOR)[0] for key in known.values()})
    if pinned and len(aliases) > 1:
        raise ConfigError(f"several models are served: name one by --model: {', '.join(aliases)}")
    return known
