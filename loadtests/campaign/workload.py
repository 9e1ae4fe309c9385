"""What each request asks for, and how much it wants back."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from loadtests.campaign.strict import Count, Name, NotNegative, Positive, Share, Strict


class Lengths(Strict):
    """Lognormal lengths in tokens, cut to `[min, max]`."""

    median: Positive
    sigma: NotNegative
    """Standard deviation of the logarithm; 0 makes every length the median."""
    min: Count = 1
    max: Count

    @model_validator(mode="after")
    def _is_range(self) -> "Lengths":
        if not self.min <= self.median <= self.max:
            raise ValueError(
                f"need min <= median <= max, have {self.min}, {self.median}, {self.max}"
            )
        return self


class TrafficClass(Strict):
    """One kind of traffic in a mixture: chat, retrieval, code, ..."""

    name: Name
    weight: Positive
    input_tokens: Lengths
    output_tokens: Lengths
    correlation: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Of the logarithms of input and output length (a Gaussian copula)."""


class CorpusPrompts(Strict):
    """Questions of the reference corpus."""

    kind: Literal["corpus"] = "corpus"
    split: Literal["seen", "unseen"] = "seen"


class JsonlPrompts(Strict):
    """One JSON object per line with a `prompt` string; `path` is relative to the YAML file."""

    kind: Literal["jsonl"]
    path: Path


class SyntheticPrompts(Strict):
    """Text made from a seed, of lengths drawn from a mixture of traffic classes."""

    kind: Literal["synthetic"]
    mix: tuple[TrafficClass, ...] = Field(min_length=1)

    @field_validator("mix")
    @classmethod
    def _names_are_distinct(cls, value: tuple[TrafficClass, ...]) -> tuple[TrafficClass, ...]:
        names = [each.name for each in value]
        if len(set(names)) != len(names):
            raise ValueError(f"need distinct names, have {names}")
        return value


class TracePrompts(Strict):
    """Nothing of its own: every stage is a trace, which says the lengths; the text is made."""

    kind: Literal["trace"]


Prompts = CorpusPrompts | JsonlPrompts | SyntheticPrompts | TracePrompts


class SharedPrefix(Strict):
    """A part of the requests begins with one of a few common texts, as system prompts do."""

    share: Share
    """Of the requests (of the sessions, where there are sessions)."""
    tokens: Count
    groups: Count = 1
    """Different prefixes."""


class Sessions(Strict):
    """Conversations. An arrival is the next turn of the session that has waited longest past its
    think time, or else the first turn of a new session: the stage's arrivals stay as they are.

    A turn carries the conversation so far. Answers in it are made from the seed, with the planned
    length, and not what the variant said: every variant gets the same prompts.
    """

    turns: tuple[Count, Count]
    """Fewest and most turns; each session draws one number, both ends included."""
    think_s: tuple[NotNegative, NotNegative]
    """Shortest and longest time from one turn's arrival to the next; drawn per turn."""

    @model_validator(mode="after")
    def _are_ranges(self) -> "Sessions":
        for low, high in (self.turns, self.think_s):
            if low > high:
                raise ValueError(f"need lowest <= highest, have {[low, high]}")
        return self


class Workload(Strict):
    """What each request asks for."""

    prompts: Annotated[Prompts, Field(discriminator="kind")]
    max_tokens: tuple[Count, Count] | None = None
    """Lowest and highest output length in tokens; each request draws one, both ends included.
    Null for `synthetic`, whose classes say it, and for `trace`."""
    shared_prefix: SharedPrefix | None = None
    sessions: Sessions | None = None
    forced_length: bool = True
    """Send `ignore_eos` and `min_tokens`: variants that stop early must not look faster."""
    temperature: NotNegative = 0.0

    @field_validator("max_tokens")
    @classmethod
    def _is_range(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(f"need lowest <= highest, have {list(value)}")
        return value

    @model_validator(mode="after")
    def _says_output_length_once(self) -> "Workload":
        says_it = isinstance(self.prompts, SyntheticPrompts | TracePrompts)
        if says_it and self.max_tokens is not None:
            raise ValueError(f"max_tokens: leave it out, {self.prompts.kind} prompts say it")
        if not says_it and self.max_tokens is None:
            raise ValueError("max_tokens: need [lowest, highest] for these prompts")
        return self
