"""What the plan says of one request, and of one cell: the nouns of `loadtests.plan`."""

from dataclasses import dataclass
from typing import Literal

from serve_app.domain.units import NS_PER_S

Phase = Literal["warmup", "measured", "cooldown"]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a prompt's text.

    With `n_tokens`: about so many tokens of text that `seed` makes, always the same. Without: the
    entry `seed` of the campaign's prompts.
    """

    seed: int
    n_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation; its text is that of its parts, one after the other."""

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One arrival: `offset_ns` after the start of its cell (0 in a closed loop)."""

    offset_ns: int
    phase: Phase
    turns: tuple[Turn, ...]
    max_tokens: int
    kind: str = ""
    """Traffic class, of a mixture."""
    session: str | None = None
    """Sent as `x-session-id`."""

    @property
    def input_tokens(self) -> int | None:
        """Planned length of the prompt's text; None where it is not made to a length."""
        lengths = [part.n_tokens for turn in self.turns for part in turn.parts]
        known = [n for n in lengths if n is not None]
        return sum(known) if len(known) == len(lengths) else None


@dataclass(frozen=True)
class Cell:
    """One variant under one stage in one block; the unit that runs without a pause.

    In a closed loop `concurrency` users take the `requests` in turn, over and over; a request's
    phase is then that of the time at which it is sent.
    """

    index: int
    """Position in the run."""
    stage: str
    block: int
    repeat: int
    variant: str
    rate_per_s: float | None
    """Offered in the measured window; None in a closed loop."""
    window_ns: tuple[int, int]
    """Start and end of the measured window, from the start of the cell."""
    end_ns: int
    """End of the arrivals, from the start of the cell."""
    requests: tuple[PlannedRequest, ...]
    concurrency: int | None = None

    @property
    def window_s(self) -> float:
        """Length of the measured window in seconds."""
        return (self.window_ns[1] - self.window_ns[0]) / NS_PER_S

    def phase_at(self, offset_ns: int) -> Phase:
        """The phase of a request that is sent `offset_ns` after the start of the cell."""
        if offset_ns < self.window_ns[0]:
            return "warmup"
        return "measured" if offset_ns < self.window_ns[1] else "cooldown"
