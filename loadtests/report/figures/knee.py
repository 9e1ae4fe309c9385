"""Where a search found the highest rate that meets the SLO."""

from loadtests.analyse.nouns import Verdict
from loadtests.report.figures.style import (
    MUTED,
    Picture,
    add_legend,
    colour_of,
    log_axis,
    marker_of,
    new_figure,
)
from loadtests.report.result import CampaignResult
from loadtests.report.stages import variants_of


def draw_knee(result: CampaignResult) -> Picture | None:
    """Attainment of every probe against its rate, and the bracket per variant."""
    has_probe = any(probe.attainment.n for found in result.saturation for probe in found.probes)
    if not has_probe or result.campaign.slo is None:
        return None
    variants = variants_of(result)
    figure = new_figure(3.2 + 0.22 * len(variants))
    upper, lower = figure.subplots(
        2, 1, sharex=True, height_ratios=(2.4, 0.35 + 0.22 * len(variants))
    )
    for found in result.saturation:
        i = variants.index(found.variant)
        probes = [each for each in found.probes if each.attainment.n]
        rates = [each.rate_per_s for each in probes]
        shares = [each.attainment.k / each.attainment.n for each in probes]
        upper.plot(rates, shares, color=colour_of(i), alpha=0.6)
        for probe, share in zip(probes, shares, strict=True):
            at, ends = [probe.rate_per_s] * 2, [probe.attainment.low, probe.attainment.high]
            upper.plot(at, ends, color=colour_of(i), linewidth=3.5, alpha=0.3)
            fill = colour_of(i) if probe.verdict is Verdict.PASS else "none"
            upper.plot(
                [probe.rate_per_s], [share], color=colour_of(i), marker=marker_of(i),
                markerfacecolor=fill, markersize=6,
            )  # fmt: skip
        ends_at = [end for end in (found.highest_passed_per_s, found.lowest_failed_per_s) if end]
        lower.plot(ends_at, [i] * len(ends_at), color=colour_of(i), linewidth=5, alpha=0.4)
        lower.plot(ends_at, [i] * len(ends_at), color=colour_of(i), marker="|", linestyle="")
        if len(ends_at) == 1:
            arrow, offset = ("←", -12) if found.highest_passed_per_s is None else ("→", 12)
            lower.annotate(
                arrow, (ends_at[0], i), (offset, 0), textcoords="offset points", ha="center",
                va="center", color=colour_of(i), annotation_clip=False,
            )  # fmt: skip
    limit = result.campaign.slo.attainment
    upper.axhline(limit, color=MUTED, linestyle=":", linewidth=1)
    upper.set(title=f"share of requests in the SLO (limit {100 * limit:g} %)")
    lower.set_yticks(range(len(variants)), variants)
    lower.set_ylim(len(variants) - 0.5, -0.5)
    lower.set(title="highest rate that held to lowest that did not", xlabel="offered requests/s")
    lower.grid(visible=False, axis="y")
    log_axis(lower.xaxis)
    add_legend(figure, variants, linestyle="-")
    return Picture(
        name="knee",
        title="Saturation",
        caption="Bars are intervals of the share, 95 % for all repeats together. Filled "
        "marks passed: their bar lies above the limit. Hollow ones did not: their bar lies below "
        "the limit or crosses it. Where it still crosses it after all repeats, the bracket goes "
        "by the mark. An arrow: no rate was found for that end of the bracket.",
        alt="Share of requests within the SLO against the offered rate per variant, and the "
        "bracket of the highest rate that passes; the numbers are in the table of saturation.",
        figure=figure,
    )
