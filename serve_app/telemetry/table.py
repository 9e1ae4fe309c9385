"""The table of all metrics in README.md: `python -m serve_app.telemetry.table` writes it anew."""

from pathlib import Path

from serve_app.telemetry.names import BOUNDED_BY, HistogramName, MetricName, every_metric

README = Path(__file__).with_name("README.md")
_BEGIN, _END = "<!-- metrics -->\n", "<!-- /metrics -->"


def markdown() -> str:
    """A row for each metric, in the order of `names`, then what bounds each label."""
    lines = ["| metric | kind | labels | |", "|---|---|---|---|"]
    for metric in every_metric():
        labels = ", ".join(metric.labels)
        lines.append(f"| `{metric.name}` | {_kind(metric)} | {labels} | {metric.description} |")
    lines += ["", "| label | bounded by |", "|---|---|"]
    lines += [f"| {label} | {bound} |" for label, bound in BOUNDED_BY.items()]
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """The README's text with the table as it should be."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{markdown()}{_END}{after}"


def _kind(metric: MetricName) -> str:
    if isinstance(metric, HistogramName):
        low, high = metric.buckets[0], metric.buckets[-1]
        return f"histogram, {len(metric.buckets)} bounds from {low:g} to {high:g}"
    return "counter" if metric.name.endswith("_total") else "gauge"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text("utf-8")), "utf-8")
