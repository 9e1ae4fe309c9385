"""`python -m cluster.check`: all checks of cluster/ that need no cluster, in one table.

python -m cluster.check                      exit 1 if one fails
python -m cluster.check timers               the three autoscalers' waits in series
python -m cluster.check change REF [OVERLAY] what applying this tree after REF would do
"""

import sys
from collections import Counter

from cluster.check.halves import check_halves, render_at
from cluster.check.render import ray_service, rendered
from cluster.check.rules import MADE, made
from cluster.check.table import Row, rows, scaling_series
from serve_app.domain.errors import QuantileError


def main(arguments: list[str]) -> int:
    """Exit status."""
    match arguments:
        case []:
            return _table()
        case ["timers"]:
            print(timers_table())
            return 0
        case ["rules"]:
            MADE.write_text(made(), "utf-8")
            return 0
        case ["change", reference, *rest] if len(rest) <= 1:
            return _change(reference, rest[0] if rest else "prod")
    print(__doc__, file=sys.stderr)
    return 2


def timers_table() -> str:
    """As it stands in the README."""
    lines = ["| series | wait | at most, s | from |", "|---|---|---|---|"]
    for series in scaling_series():
        lines += [
            f"| {series.name} | {step.what} | {step.seconds:.0f} | {step.source} |"
            for step in series.steps
        ]
        lines.append(f"| **{series.name}** | **together** | **{series.total_s:.0f}** | |")
    return "\n".join(lines)


def _table() -> int:
    found = list(rows())
    widths = [max(len(getattr(each, name)) for each in found) for name in Row.__dataclass_fields__]
    for each in found:
        cells = zip((each.what, each.where, each.verdict), widths, strict=False)
        print("  ".join(text.ljust(width) for text, width in cells) + "  " + each.detail)
    verdicts = Counter(each.verdict for each in found)
    print(f"{verdicts['pass']} passed, {verdicts['fail']} failed, {verdicts['skip']} skipped")
    return 1 if verdicts["fail"] else 0


def _change(reference: str, overlay: str) -> int:
    try:
        old = render_at(reference, overlay)
        print(check_halves(old, ray_service(rendered(f"cluster/overlays/{overlay}"))))
    except QuantileError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
