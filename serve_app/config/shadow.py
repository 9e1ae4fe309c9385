"""Shadow traffic in the router's `user_config`: who gets copies, of what, and how many.

Limits hold for each router replica and alias by itself: two replicas mirror twice as much.
"""

from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from serve_app.config.strict import StrictModel, VariantName
from serve_app.domain.units import BP_TOTAL, MIB

_HELD_PER_MIRROR = 3
"""The request's body and two answers."""


class ShadowLogConfig(StrictModel):
    """A JSONL file with a line per mirrored request that was sent; see decision 0020."""

    path: Annotated[str, Field(pattern=r"^/.*[^/]$")]
    """Absolute, as a replica's working folder is Ray's. Replicas of one node share the file."""
    sample_bp: Annotated[int, Field(ge=1, le=BP_TOTAL)] = BP_TOTAL
    """Share of the mirrored requests that get a line, in basis points."""
    texts: bool = False
    """Whether lines have the request and both answers in clear, in place of their digests."""
    max_bytes: PositiveInt = 64 * MIB
    """A file that would grow beyond this becomes `<path>.1`, the one before it `<path>.2`, ..."""
    keep: Annotated[int, Field(ge=0, le=100)] = 3
    """Older files that are kept."""


class ShadowConfig(StrictModel):
    """A candidate variant that gets a copy of some requests; nobody sees its answers."""

    variant: VariantName
    """The candidate. It must be of the alias's split, where a share of 0 is allowed."""
    share_bp: Annotated[int, Field(ge=0, le=BP_TOTAL)]
    """Share of the requests that are mirrored, in basis points: of the sessions, where named."""
    only_greedy: bool = True
    """Mirror only requests of temperature 0: of the others no two answers are alike."""
    max_concurrent: PositiveInt = 4
    """Mirrored requests that the candidate works on at once."""
    max_queued: Annotated[int, Field(ge=0)] = 32
    """Mirrored requests that wait for it; more are dropped."""
    max_body_bytes: PositiveInt = 2 * MIB
    """The longest request that is mirrored, and the longest answer that is compared."""
    max_held_bytes: PositiveInt = 64 * MIB
    """What all mirrored requests and their answers may take of the router's memory together."""
    timeout_s: PositiveFloat = 120.0
    """The candidate's time for one answer, from its being asked to its last byte."""
    pause_after_failures: PositiveInt = 5
    """Failures in a row after which mirroring pauses."""
    pause_s: PositiveFloat = 30.0
    """How long it pauses; then one more failure pauses it again."""
    log: ShadowLogConfig | None = None
    """None: no log."""

    @model_validator(mode="after")
    def _one_mirror_fits(self) -> Self:
        needed = _HELD_PER_MIRROR * self.max_body_bytes
        if self.max_held_bytes < needed:
            raise ValueError(
                f"max_held_bytes {self.max_held_bytes} is below {_HELD_PER_MIRROR} x "
                f"max_body_bytes {self.max_body_bytes} (a request and two answers): raise it to "
                f"{needed}, or lower max_body_bytes"
            )
        return self
