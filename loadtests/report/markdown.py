"""`report.md`: what a pull request needs first; every number and its formula after it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from loadtests.analyse.metrics import FORMULAS
from loadtests.records.manifest import Manifest
from loadtests.report.findings import (
    clock_of,
    headlines,
    notes_of,
    slo_reasons,
    status_line,
    trust_reasons,
    verdict_line,
)
from loadtests.report.footnotes import under_latencies, under_summary
from loadtests.report.provenance import facts_of, facts_table, split_facts
from loadtests.report.result import CampaignResult
from loadtests.report.stages import stage_rows
from loadtests.report.tables import (
    Table,
    client_table,
    comparison_table,
    latency_table,
    overview_table,
    probe_table,
    saturation_table,
    summary_table,
)


def render_markdown(result: CampaignResult, pictures: Sequence[Path]) -> str:
    """The report as Markdown; pictures are linked by file name."""
    parts = [
        f"# Load campaign: {escaped(result.campaign.target.model)}",
        f"**{escaped(verdict_line(result))}.** {escaped(status_line(result))}.",
        items(each.text for each in headlines(result)),
        items((*trust_reasons(result), *slo_reasons(result))),
        items(f"Note: {note}" for note in notes_of(result)),
    ]
    overview = overview_table(result.comparisons)
    groups = stage_rows(result)
    parts += [titled(overview)] if overview else []
    parts += [titled(saturation_table(result))] if result.saturation else []
    for group in groups:
        parts += [titled(summary_table(result, group)), escaped(under_summary(group))]
    parts += [f"{clock_of(result)}." if groups else ""]
    parts += [f"![{path.stem}]({path.name})" for path in pictures]
    parts += ["## Every number"]
    for group in groups:
        parts += [titled(latency_table(group)), escaped(under_latencies(group))]
    details = [comparison_table(result.comparisons)] if result.comparisons else []
    details += [probe_table(result)] if result.saturation else []
    details += [client_table(group, result.campaign.validity) for group in groups]
    parts += [titled(table) for table in details]
    parts += ["## Formulas", items(f"`{k}`: {v}" for k, v in FORMULAS.items())]
    parts += ["## Campaign", f"Started {result.manifest.started_at} on {_host(result)}."]
    parts += _facts(result.manifest)
    text = yaml.safe_dump(result.campaign.model_dump(mode="json"), sort_keys=False)
    parts.append(f"````yaml\n{text}````")
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def _facts(manifest: Manifest) -> list[str]:
    """A table of what differs between the variants; one line of what does not."""
    differing, shared = split_facts(facts_of(manifest))
    same = ", ".join(f"{name} {text}" for name, text in shared.items())
    return [
        titled(facts_table(differing)) if differing else "",
        escaped(f"All variants: {same}.") if same else "",
    ]


def titled(table: Table) -> str:
    """The table under its caption."""
    lines = [f"### {escaped(table.caption)}", ""]
    lines.append("| " + " | ".join(map(_cell, table.header)) + " |")
    sides = ["---" if i < table.n_names else "---:" for i in range(len(table.header))]
    lines.append("|" + "|".join(sides) + "|")
    lines += ["| " + " | ".join(_cell(cell.text) for cell in row) + " |" for row in table.rows]
    return "\n".join(lines)


def items(texts: Iterable[str]) -> str:
    """A list, escaped."""
    return "\n".join(f"- {escaped(text)}" for text in texts)


def _cell(text: str) -> str:
    return escaped(text).replace("|", "\\|")


def escaped(text: str) -> str:
    """Names and error details come from the target: no markup, links, or line breaks, and no
    `@name`, which would call people to the pull request.
    """
    flat = " ".join(text.split()).replace("](", "]\\(").replace("`", "'")
    plain = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return plain.replace("@", "@&#8203;")  # a space of no width


def _host(result: CampaignResult) -> str:
    host = result.manifest.host
    return (
        f"{host.get('machine')} with {host.get('cpus')} CPUs, Python {host.get('python')}, "
        f"Locust {host.get('locust')}, quantile {host.get('quantile')}"
    )
