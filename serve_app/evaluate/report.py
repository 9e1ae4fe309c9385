"""`quality.md`, `quality.html` and the terminal's table: the same tables, drawn three ways."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from serve_app.domain.quality import (
    Agreement,
    Estimate,
    Likelihood,
    QualityReport,
    SetQuality,
    VariantQuality,
)
from serve_app.evaluate.side_by_side import page

MISSING = "-"


@dataclass(frozen=True)
class Table:
    """Text by row and column; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def number(estimate: Estimate | None, digits: int = 4, *, is_share: bool = False) -> str:
    """`0.0123 (0.0100-0.0150)`; `-` where there is none."""
    if estimate is None:
        return MISSING

    def one(value: float) -> str:
        return f"{value:.1%}" if is_share else f"{value:.{digits}f}"

    if estimate.low is None or estimate.high is None:
        return one(estimate.value)
    return f"{one(estimate.value)} ({one(estimate.low)} to {one(estimate.high)})"


def overview(report: QualityReport) -> Table:
    """One row a variant: what a reader needs first."""
    rows = []
    for each in _all(report):
        likely, found = each.likelihood, _agreement(each)
        rows.append(
            (
                each.name,
                "" if each is report.noise_floor else str(each.verdict),
                number(each.score, is_share=True),
                _loss(each),
                number(likely.perplexity_ratio if likely else None),
                number(found.kl_mean, 5),
                number(found.kl_p99, 4),
                number(found.top1_agreement, is_share=True),
                number(found.abs_delta_logprob, 5),
            )
        )
    header = ("variant", "verdict", "score", "loss", "perplexity ratio", "KL mean", "KL P99")
    title = f"{report.model}: against {report.baseline}, 95 % intervals"
    return Table(title, (*header, "same top token", "mean |Δlogp|"), tuple(rows))


def sets_table(report: QualityReport) -> Table:
    """Every set, every scoring, every variant."""
    rows = [_set_row(each.name, found) for each in _all(report) for found in each.sets]
    header = ("variant", "set", "scoring", "n", "accuracy", "delta", "right>wrong", "wrong>right")
    more = ("both wrong, differ", "excess flips", "McNemar p", "detectable", "power", "verdict")
    return Table("Task sets", (*header, *more), tuple(rows))


def likelihood_table(report: QualityReport) -> Table:
    """Perplexities, and the figures in excess of the noise floor."""
    rows = []
    for each in _all(report):
        likely = each.likelihood
        if likely is None:
            rows.append((each.name, each.likelihood_gap or MISSING, *[MISSING] * 8))
            continue
        rows.append((each.name, *_likelihood_cells(likely)))
    header = ("variant", "tokens", "perplexity", "bits per byte", "answer perplexity")
    more = ("answer ratio", "excess KL", "excess KL P99", "excess same top", "excess |Δlogp|")
    return Table("Log-probabilities; excess over the noise floor", (*header, *more), tuple(rows))


def texts_table(report: QualityReport) -> Table:
    """ROUGE and BLEU; what they are against is a column, never mixed."""
    rows = [
        (
            each.name,
            text.to,
            str(text.n),
            number(text.rouge1),
            number(text.rouge_l),
            number(text.bleu, 1),
            number(text.length_ratio, 3),
            MISSING
            if text.is_length_in_band is None
            else ("yes" if text.is_length_in_band else "NO"),
        )
        for each in _all(report)
        for text in each.texts
    ]
    header = ("variant", "against", "n", "ROUGE-1", "ROUGE-L", "BLEU", "length ratio", "90-110 %")
    return Table("Generated texts", header, tuple(rows))


def tables(report: QualityReport) -> list[Table]:
    """All that have rows."""
    made = (overview(report), sets_table(report), likelihood_table(report), texts_table(report))
    return [each for each in made if each.rows]


def findings(report: QualityReport) -> Iterator[str]:
    """Verdicts with their reasons, then what a reader has to know."""
    if report.is_partial:
        yield "PARTIAL: the evaluation did not end; run the same command with the same --out"
    for each in report.variants:
        yield f"{each.name}: {each.verdict}: {each.reason}"
    yield from report.notes


def print_report(report: QualityReport, console: Console) -> None:
    """The overview, without its intervals, and the findings."""
    table = overview(report)
    shown = RichTable(title=table.title, title_justify="left")
    for name in table.header:
        shown.add_column(name, overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(_short(cell)) for cell in row))
    console.print(shown)
    for line in findings(report):
        console.print(Text(line))


def _short(cell: str) -> str:
    """A terminal is narrow: intervals of what is not small stand in the files."""
    return cell.partition(" (")[0] if not cell.startswith("0 (") else cell


def render_markdown(report: QualityReport) -> str:
    """Texts from outside are escaped."""
    parts = [f"# Quality: {_escaped(report.model)}"]
    parts.append("\n".join(f"- {_escaped(line)}" for line in findings(report)))
    for table in tables(report):
        lines = [f"## {_escaped(table.title)}", "", _line(table.header)]
        lines.append("|" + "---|" * len(table.header))
        parts.append("\n".join([*lines, *map(_line, table.rows)]))
    parts.append(
        "\n".join(["## Provenance", "", *(f"- {_escaped(x)}" for x in _provenance(report))])
    )
    return "\n\n".join(parts) + "\n"


def render_html(report: QualityReport) -> str:
    """One file that needs nothing else."""
    body = ["<ul>", *(f"<li>{html.escape(line)}</li>" for line in findings(report)), "</ul>"]
    body.append('<p><a href="outputs.html">Outputs side by side</a></p>')
    for table in tables(report):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for row in table.rows
        )
        body.append(f"<h2>{html.escape(table.title)}</h2>")
        body.append(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in _provenance(report))
    body.append(f"<h2>Provenance</h2><ul>{lines}</ul>")
    return page(f"Quality: {report.model}", body)


def _all(report: QualityReport) -> tuple[VariantQuality, ...]:
    return (*report.variants, *([report.noise_floor] if report.noise_floor else []))


def _agreement(found: VariantQuality) -> Agreement:
    agreement = found.likelihood.agreement if found.likelihood else None
    return agreement or Agreement()


def _loss(found: VariantQuality) -> str:
    if found.loss is None:
        return MISSING
    if found.loss.low == found.loss.high == 0:
        return "0 (baseline)"
    return number(found.loss, is_share=True)


def _set_row(name: str, found: SetQuality) -> tuple[str, ...]:
    flips = found.flips
    counts = (
        (flips.right_to_wrong, flips.wrong_to_right, flips.both_wrong_different) if flips else ()
    )
    failed = f" (+{found.n_failed} failed)" if found.n_failed else ""
    return (
        name,
        found.name,
        f"{found.scoring}{' *' if found.decides else ''}",
        f"{found.n}{failed}",
        number(found.accuracy, is_share=True),
        number(found.delta, is_share=True),
        *([str(count) for count in counts] or [MISSING] * 3),
        MISSING if found.excess_flips is None else f"{found.excess_flips:+.2%}",
        MISSING if found.mcnemar_p is None else f"{found.mcnemar_p:.3f}",
        MISSING if found.minimal_detectable is None else f"{found.minimal_detectable:.2%}",
        str(found.power),
        str(found.verdict or MISSING),
    )


def _likelihood_cells(likely: Likelihood) -> tuple[str, ...]:
    excess = likely.excess or Agreement()
    return (
        f"{likely.n_tokens:,}",
        number(likely.perplexity),
        number(likely.bits_per_byte),
        number(likely.answer_perplexity),
        number(likely.answer_perplexity_ratio),
        number(excess.kl_mean, 5),
        number(excess.kl_p99, 4),
        number(excess.top1_agreement, is_share=True),
        number(excess.abs_delta_logprob, 5),
    )


def _provenance(report: QualityReport) -> Iterator[str]:
    made, bar = report.provenance, report.bar
    yield f"{made.base_url}, {made.created_at}"
    yield (
        f"bar: {bar.margin:.1%} of accuracy, relative; perplexity ratio "
        f"{bar.max_perplexity_ratio:g}"
        f"; alpha {bar.alpha:g}, Holm across variants"
    )
    yield ", ".join(f"{name} {version}" for name, version in made.versions.items())
    yield from (f"{name}: {engine}" for name, engine in made.engines.items())
    yield from (f"set {s.name}: {s.n} items, {s.origin}, sha256 {s.digest}" for s in made.sets)
    yield f"windows of {made.window_tokens} tokens, sha256 {made.windows_digest or 'none'}"
    yield f"top {made.top_k}; {made.n_resamples} resamples, seed {made.seed}; {made.concurrency}"
    signatures = {t.bleu_signature for v in report.variants for t in v.texts if t.bleu_signature}
    yield from (f"sacrebleu {signature}" for signature in sorted(signatures))
    yield "*: the scoring of the set that counts towards the score"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escaped(cell).replace("|", "\\|") for cell in cells) + " |"


def _escaped(text: str) -> str:
    flat = " ".join(text.split()).replace("](", "]\\(").replace("`", "'")
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
