"""The family on one page: what each variant weighs, what it lost, how fast it is. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serve_app.domain.quality import Estimate, QualityReport, VariantQuality
from serve_app.domain.units import format_bytes
from serve_app.quantize.recipes import Recipe
from serve_app.reference.speed import Result, speeds

BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Row:
    """One variant; None is not known. Speeds are tokens/s at `BATCHES`, medians over blocks."""

    name: str
    scheme: str
    engine: str
    """`vllm`, `llamacpp`, or `vllm, twin` where only the dequantized weights are served."""
    weights_bytes: int
    bytes_ratio: float
    quality: VariantQuality | None
    tokens_per_s: tuple[float | None, ...]
    why_no_speed: str = ""


def rows(
    recipes: Sequence[Recipe],
    weights_bytes: Mapping[str, int],
    twins: Mapping[str, bool],
    report: QualityReport,
    speed: Result,
) -> list[Row]:
    """Every recipe's row, the first one's bytes being the yardstick."""
    judged = {each.name: each for each in report.variants}
    fast = {
        (s.variant, s.batch): s.tokens_per_s.median for s in speeds(speed.samples, speed.baseline)
    }
    base_bytes = weights_bytes[recipes[0].name]
    found = []
    for each in recipes:
        is_twin = twins[each.name]
        why = speed.failed.get(each.name, "a twin's speed would be the dense weights'")
        figures = tuple(fast.get((each.name, batch)) for batch in BATCHES)
        found.append(
            Row(
                name=each.name,
                scheme=each.scheme.describe(),
                engine="vllm, twin" if is_twin else each.engine.kind,
                weights_bytes=weights_bytes[each.name],
                bytes_ratio=weights_bytes[each.name] / base_bytes,
                quality=judged.get(each.name),
                tokens_per_s=figures,
                why_no_speed="" if any(figures) else why,
            )
        )
    return found


HEAD = (
    "variant", "scheme", "engine", "bytes", "of base", "perplexity ratio", "KL, nats",
    "mean \\|Δlogp\\|", "exact match (95 %)", *(f"tok/s, batch {batch}" for batch in BATCHES),
)  # fmt: skip


def markdown(table: Sequence[Row], notes: Sequence[str]) -> str:
    """The table with its notes beneath."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * 3 + "--:|" * (len(HEAD) - 3)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in table]
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def cells(row: Row) -> tuple[str, ...]:
    """A row as text; what is not known is a dash."""
    quality = row.quality
    likelihood = quality.likelihood if quality else None
    agreement = likelihood.agreement if likelihood else None
    return (
        row.name,
        row.scheme,
        row.engine,
        format_bytes(row.weights_bytes),
        f"{row.bytes_ratio:.2f}",
        _estimate(likelihood.perplexity_ratio if likelihood else None, 4),
        _estimate(agreement.kl_mean if agreement else None, 5),
        _estimate(agreement.abs_delta_logprob if agreement else None, 4),
        _exact_match(quality),
        *("-" if each is None else f"{each:,.0f}" for each in row.tokens_per_s),
    )


def _estimate(found: Estimate | None, digits: int) -> str:
    if found is None:
        return "-"
    text = f"{found.value:.{digits}f}"
    if found.low is None or found.high is None:
        return text
    return f"{text} ({found.low:.{digits}f}-{found.high:.{digits}f})"


def _exact_match(quality: VariantQuality | None) -> str:
    if quality is None or quality.score is None:
        return "-"
    score = quality.score
    if score.low is None or score.high is None:
        return f"{score.value:.1%}"
    return f"{score.value:.1%} ({score.low:.1%}-{score.high:.1%})"
