"""What a stage found: plain data, kept in `state.json`. Missing is None, never 0.

Strict, so that the state of another version is not read as this one's.
"""

import msgspec

from serve_app.domain.quality import Estimate
from serve_app.domain.verdict import Verdict


class MadeVariant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One variant that was made."""

    name: str
    method: str
    scheme: str
    folder: str
    served: str
    """What engines here load: the folder, or its dense twin."""
    weights_bytes: int
    manifest_sha256: str
    passed: bool
    """The correctness gate."""
    gate: str
    """Its figures in one line, and its failures."""
    card: str | None
    """The model card, None where there is none."""
    wall_s: float | None = None
    """Seconds that making it took, whenever that was."""

    @property
    def is_twin(self) -> bool:
        """Whether it runs here as dense weights: its speed here says nothing."""
        return self.folder != self.served


class LoadRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One variant under one load stage. Times in ms; `shown` as the campaign's report writes it."""

    stage: str
    load: str
    """As `10/s`, or `8 in flight`."""
    concurrency: int | None
    is_gated: bool
    variant: str
    n_planned: int
    n_ok: int
    is_valid: bool
    reason: str
    """Why it is invalid, or what the SLO's verdict rests on."""
    slo: Verdict | None
    output_tokens_per_s: float
    p95: str
    """Of E2E, failures as infinite, with its interval; `-` where the sample has none."""
    p99: str
    has_tail: bool
    """Whether both are known."""


class LatencyRatio(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One latency of a variant over the baseline's, with a 95 % interval, paired by block."""

    stage: str
    variant: str
    latency: str
    """As `e2e-p95`."""
    ratio: float | None
    low: float | None
    high: float | None
    reason: str


class Load(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A campaign."""

    verdict: Verdict
    reason: str
    rows: tuple[LoadRow, ...]
    ratios: tuple[LatencyRatio, ...]


class JudgedVariant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the evaluation says of one variant."""

    name: str
    verdict: Verdict
    reason: str
    n_items: int
    """Of the task sets that count."""
    score: Estimate | None = None
    loss: Estimate | None = None
    perplexity_ratio: Estimate | None = None
    abs_delta_logprob: Estimate | None = None
    """Mean per token, in nats."""


class SplitShare(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the alias sent to one variant."""

    variant: str
    share_bp: int
    expected: int
    """Sessions that it owns."""
    served: int
    """Answers that name it in `x-variant`."""


class Split(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests through the alias, each with a session of its own."""

    n_requests: int
    n_failed: int
    n_misrouted: int
    """Answered by another variant than the owner of the session."""
    shares: tuple[SplitShare, ...]
    reasons: dict[str, int]
    """Answers by `x-route-reason`."""
    first_fault: str = ""


class Recommended(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The recommendation."""

    verdict: Verdict
    answer: str
    chosen: str | None
    sentences: tuple[str, ...]
    next_steps: tuple[str, ...]


class Findings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that one stage found."""

    made: tuple[MadeVariant, ...] = ()
    load: Load | None = None
    quality: tuple[JudgedVariant, ...] | None = None
    split: Split | None = None
    recommended: Recommended | None = None
    taken_over: tuple[str, ...] = ()
    """Variants whose answers an earlier validation had asked for, the same questions."""
