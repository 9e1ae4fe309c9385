"""The verdict of a whole campaign, which decides its exit status."""

from collections.abc import Collection, Iterable, Sequence

from loadtests.analyse.nouns import Saturation, VariantSummary, Verdict


def campaign_verdict(
    summaries: Sequence[VariantSummary],
    saturation: Sequence[Saturation],
    gated_stages: Collection[str],
    is_valid: bool,
    is_partial: bool,
) -> Verdict:
    """Pass, fail, inconclusive or invalid.

    `is_valid`: no shard is short and the client made none of the numbers. Of a search, whose
    probes beyond saturation may well fill the client, leave the rows out of it: a probe is judged
    by what the server did, and `Saturation` is invalid where that cannot be told.

    An invalid run is invalid, whatever it says, and so is a search in which the client fell short
    with any variant. A fail is a finding even of a partial run; a pass needs the whole run. Fail
    beats inconclusive. Only `gated_stages` count towards the SLO; with none of them, or without an
    SLO, a whole and valid run passes.
    """
    if not is_valid:
        return Verdict.INVALID
    gated = [row.slo_verdict for row in summaries if row.stage in gated_stages]
    verdicts = [each.verdict for each in saturation] if saturation else gated
    found = worst(verdict for verdict in verdicts if verdict is not None)
    return Verdict.INCONCLUSIVE if is_partial and found is Verdict.PASS else found


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Invalid before fail before inconclusive before pass; pass for none."""
    order = (Verdict.INVALID, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
    return min(verdicts, key=order.index, default=Verdict.PASS)
