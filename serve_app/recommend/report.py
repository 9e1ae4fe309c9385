"""What a recommendation's files hold, and how they are written."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serve_app.advise.evidence import Evidence
from serve_app.advise.recommendation import Recommendation
from serve_app.domain.errors import ConfigError
from serve_app.recommend.change import Change

FORMAT = 1
JSON, MARKDOWN, HTML = "recommendation.json", "recommendation.md", "recommendation.html"
DIFF = "serve-config.diff"


@dataclass(frozen=True)
class Report:
    """A recommendation with all that it rests on and what follows."""

    evidence: Evidence
    recommendation: Recommendation
    change: Change | None
    """None: not decided, or no Serve file was given."""
    sources: tuple[str, ...]
    """The files that the evidence is from."""
    no_change: str | None = None
    """Why the Serve file cannot be changed as recommended."""


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write every view into `folder`, over those of an earlier run. Raises ConfigError."""
    # matplotlib takes a second to import
    from loadtests.report.figures.style import save_png, style
    from serve_app.recommend.markdown import render_markdown
    from serve_app.recommend.page import render_page
    from serve_app.recommend.pictures import draw_pictures

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with style():
            pictures = draw_pictures(report)
            drawn = [save_png(picture, folder) for picture in pictures]
            page = render_page(report, pictures)
        texts = {JSON: encode(report).decode(), HTML: page}
        texts[MARKDOWN] = render_markdown(report, [path.name for path in drawn])
        if report.change is not None and report.change.diff:
            texts[DIFF] = report.change.diff
        else:
            (folder / DIFF).unlink(missing_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}") from None
    return (*(folder / name for name in texts), *drawn)


def encode(report: Report) -> bytes:
    """`recommendation.json`: infinite numbers are null, as JSON has none."""
    found = report.recommendation
    change = report.change
    content = {
        "format": FORMAT,
        "verdict": found.verdict,
        "chosen": found.chosen,
        "sentences": found.sentences,
        "remarks": found.remarks,
        "next_steps": found.overall.next_steps,
        "split_bp": found.split_bp,
        "change": change and {
            "path": str(change.path),
            "diff": change.diff,
            "packing": change.packing,
            "gpus": change.n_gpus,
            "usd_per_hour": change.usd_per_hour,
            "variants": change.kept,
            "removed": change.removed,
            "left_out": change.left_out,
        },
        "no_change": report.no_change,
        "recommendation": found,
        "evidence": {
            "model": report.evidence.model,
            "baseline": report.evidence.baseline,
            "metric": report.evidence.metric,
            "levels": report.evidence.levels,
            "variants": report.evidence.variants,
            "contrasts": {
                str(axis): contrasts for axis, contrasts in report.evidence.contrasts.items()
            },
            "notes": report.evidence.notes,
            "broken": report.evidence.broken,
        },
        "sources": report.sources,
    }  # fmt: skip
    return msgspec.json.format(msgspec.json.encode(content), indent=1)


def lines(items: Iterable[str]) -> str:
    """One line each."""
    return "".join(f"{item}\n" for item in items)
