"""`QualityReport`: what an evaluation found of each variant, against one baseline. Pure data.

Written as `quality.json`. Missing is None with a reason beside it, never 0. Intervals are 95 %,
two-sided, unless a name says otherwise. Shares are 0 to 1, log-probabilities and KL in nats.
"""

from enum import StrEnum
from itertools import combinations

import msgspec

from serve_app.domain.errors import ConfigError
from serve_app.domain.verdict import Verdict

SCHEMA = 1
"""Version of `quality.json`; raised when a field changes its meaning or goes."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value with its 95 % interval; an end that is not known is None."""

    value: float
    low: float | None = None
    high: float | None = None


class QualityBar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a variant has to hold to pass."""

    margin: float = 0.01
    """Relative loss of accuracy that is allowed (MLPerf's 99 % rule)."""
    max_perplexity_ratio: float = 1.05
    """Perplexity of the variant over the baseline's, at most. A guard against damage that the
    task sets do not ask about; published 4-bit checkpoints of 7B models stay below 1.04."""
    alpha: float = 0.05
    """Of every decision, after Holm's correction across the variants."""


class Power(StrEnum):
    """Whether a task set can tell variants apart."""

    INFORMATIVE = "informative"
    FLOOR = "floor"
    """The baseline gets nothing right, or no more than guessing would: nothing can be lost."""
    CEILING = "ceiling"
    """The baseline gets (nearly) everything right: only great damage shows."""


class Scoring(StrEnum):
    """How an answer is judged."""

    GREEDY = "greedy"
    """The greedy answer equals the only right one, white space at its ends aside."""
    CHOICE = "choice"
    """The right answer has the highest log-probability of the choices that are given."""


class Flips(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Items by what became of the baseline's answer."""

    both_right: int
    right_to_wrong: int
    wrong_to_right: int
    both_wrong_same: int
    both_wrong_different: int
    """Both wrong, but not the same answer: no flip, yet the variant did change."""

    @property
    def share(self) -> float | None:
        """Right to wrong and wrong to right, of all items."""
        n = sum(msgspec.structs.astuple(self))
        return (self.right_to_wrong + self.wrong_to_right) / n if n else None


class SetQuality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One task set, scored one way, against the baseline on the same items."""

    name: str
    scoring: Scoring
    n: int
    """Items answered by both; n_failed requests got no answer from one of them."""
    n_failed: int
    accuracy: Estimate | None
    power: Power
    decides: bool
    """Whether this is the scoring of the set that counts towards the score."""
    delta: Estimate | None = None
    """Accuracy minus the baseline's."""
    flips: Flips | None = None
    mcnemar_p: float | None = None
    """Exact, two-sided."""
    minimal_detectable: float | None = None
    """The smallest true |delta| that 80 % of such runs would find, given this many flips."""
    excess_flips: float | None = None
    """Share of flips minus the noise floor's."""
    right_probability_delta: Estimate | None = None
    """By choice only: the right answer's probability among the choices, minus the baseline's."""
    verdict: Verdict | None = None
    """None of the baseline."""
    reason: str = ""


class Agreement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a variant's token probabilities stand to the baseline's, over the same tokens."""

    kl_mean: Estimate | None = None
    """KL(baseline || variant) per token, a lower bound: top k of both, the rest as one bucket."""
    kl_p99: Estimate | None = None
    top1_agreement: Estimate | None = None
    abs_delta_logprob: Estimate | None = None
    """Mean |log-probability of the text's own token minus the baseline's|: separates variants
    that perplexity cannot."""


class Likelihood(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Log-probabilities of fixed texts, in fixed windows that do not overlap."""

    n_tokens: int
    n_windows: int
    perplexity: Estimate
    bits_per_byte: Estimate | None
    """None where the bytes of the scored tokens are not known."""
    answer_perplexity: Estimate | None = None
    """Of the right answers alone, given the questions as the chat template writes them."""
    perplexity_ratio: Estimate | None = None
    """Over the baseline's, paired by window."""
    answer_perplexity_ratio: Estimate | None = None
    agreement: Agreement | None = None
    excess: Agreement | None = None
    """Each figure minus the noise floor's, paired by window."""
    gap: str | None = None
    """Why figures against the baseline are missing."""


class TextQuality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Generated texts, scored by the standard packages. `to` says against what: never mixed."""

    name: str
    to: str
    """`baseline` (agreement) or `references` (quality)."""
    n: int
    rouge1: Estimate | None
    rouge_l: Estimate | None
    bleu: Estimate | None
    """0 to 100, of the corpus."""
    bleu_signature: str | None
    length_ratio: Estimate | None
    """Characters of all outputs over those compared with."""
    is_length_in_band: bool | None
    """MLPerf's 90 to 110 %: shorter answers fake latency."""


class Decision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One test that the verdict rests on."""

    name: str
    verdict: Verdict
    reason: str
    value: float | None = None
    bound: float | None = None
    """One-sided, at the bar's alpha."""
    limit: float | None = None
    p_value: float | None = None
    """Of the hypothesis that the variant is worse than the limit."""
    p_adjusted: float | None = None
    """By Holm, across the variants."""


class VariantQuality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One variant. Of the baseline `loss` is exactly 0 and there is nothing to decide."""

    name: str
    model: str
    verdict: Verdict
    reason: str
    score: Estimate | None = None
    """Accuracy over all items of the sets that count."""
    loss: Estimate | None = None
    """Relative loss of score against the baseline, positive where the variant is worse."""
    decisions: tuple[Decision, ...] = ()
    sets: tuple[SetQuality, ...] = ()
    likelihood: Likelihood | None = None
    likelihood_gap: str | None = None
    """Why there are no log-probabilities."""
    texts: tuple[TextQuality, ...] = ()


class PairQuality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two variants on the same items, all sets that count together."""

    first: str
    second: str
    n: int
    gain: Estimate
    """Score of the first minus the second's, over the baseline's score: relative, paired."""
    mcnemar_p: float
    p_adjusted: float
    """By Holm, across the pairs."""


class SetRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which items were asked."""

    name: str
    digest: str
    """SHA-256 of the items, in the order in which they were asked."""
    n: int
    origin: str


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the figures come from."""

    base_url: str
    created_at: str
    versions: dict[str, str]
    engines: dict[str, str]
    """By variant, as `/status` says; empty where the endpoint has none."""
    sets: tuple[SetRecord, ...]
    windows_digest: str | None
    """SHA-256 of the token ids of the windows."""
    window_tokens: int
    top_k: int
    seed: int
    n_resamples: int
    concurrency: dict[str, int]


class QualityReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole evaluation. A partial one has only what was asked so far, and no verdict but
    `inconclusive` or worse."""

    schema: int = SCHEMA
    model: str
    baseline: str
    bar: QualityBar
    is_partial: bool
    variants: tuple[VariantQuality, ...]
    """The baseline first."""
    noise_floor: VariantQuality | None = None
    """The baseline against itself: a second pass at another concurrency."""
    pairs: tuple[PairQuality, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Provenance

    def __getitem__(self, name: str) -> VariantQuality:
        return next(each for each in self.variants if each.name == name)

    def pair(self, first: str, second: str) -> PairQuality | None:
        """The two in either order, as they were compared; None where they were not."""
        return next(
            (each for each in self.pairs if {each.first, each.second} == {first, second}), None
        )


def encode_report(report: QualityReport) -> bytes:
    """As indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def decode_report(raw: bytes, source: str) -> QualityReport:
    """Raises ConfigError for what is no quality report of this schema; `source` names it."""
    try:
        schema = msgspec.json.decode(raw, type=_Versioned).schema
        if schema != SCHEMA:
            raise ConfigError(
                f"{source}: need a quality report of schema {SCHEMA}, have {schema}: run "
                "`quantile eval` again with this version"
            )
        report = msgspec.json.decode(raw, type=QualityReport)
    except msgspec.DecodeError as error:  # ValidationError is one
        raise ConfigError(f"{source} is no quality report of `quantile eval`: {error}") from error
    names = [each.name for each in report.variants]
    if len(set(names)) != len(names) or report.baseline not in names:
        raise ConfigError(
            f"{source}: need distinct variants, {report.baseline!r} among them, have {names}"
        )
    return report


def pairs_of(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Every two variants once, in the order of `names`."""
    return tuple(combinations(names, 2))


class _Versioned(msgspec.Struct):
    schema: int
