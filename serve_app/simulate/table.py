"""A simulation as text."""

from collections.abc import Iterator, Mapping

from rich.table import Table

from serve_app.simulate.outcome import Outcome
from serve_app.simulate.study import Answer, Question

HARDLY_TIMES = 2
HARDLY = (
    "the ladder hardly helps: on one device a cheaper variant must be faster at the same "
    "batch, and by these curves it is not (quantile reference speed, or a campaign of "
    "concurrency stages, tells)"
)


def outcome_table(question: Question, found: Answer) -> Table:
    """One row per policy."""
    rungs = question.config.rungs
    table = policy_table("policy", "SLO missed", "quality", "TTFT P95", "TPOT P95", "turns", *rungs)
    for each in (found.fixed, found.ladder, found.hindsight):
        if each is not None:
            table.add_row(*_cells(each, rungs))
    table.add_row("nothing exceeds", "", f"{found.bound:.4f}")
    return table


def policy_table(policy: str, *figures: str) -> Table:
    """An empty table of policies with these titles, figures to the right."""
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(policy)
    for title in figures:
        table.add_column(title, justify="right")
    return table


def _cells(each: Outcome, rungs: tuple[str, ...]) -> Iterator[str]:
    yield each.name
    yield f"{each.n_violations} of {each.n} ({each.violation_share:.1%})"
    yield f"{each.quality:.4f}"
    yield _ms(each.ttft_p95_s)
    yield _ms(each.tpot_p95_s)
    yield str(each.turns)
    for name in rungs:
        yield f"{each.served.get(name, 0) / each.n:.1%}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:,.0f} ms"


def verdict_lines(question: Question, found: Answer, carried: Mapping[str, float]) -> Iterator[str]:
    """What the figures mean, in words."""
    n = len(question.trace)
    length_s = max(each.at_s for each in question.trace)
    yield f"{n:,} requests in {length_s:,.0f} s, {n / length_s:.2f} per second on average"
    rates = ", ".join(f"{name} {rate:.2f}" for name, rate in carried.items())
    yield f"carried per second within the TPOT, by the curves: {rates}"
    if found.fixed.n_violations:
        gain = found.gain
        times = "no violation left" if gain == float("inf") else f"{gain:.1f} times fewer"
        yield f"SLO violations against {found.fixed.name}: {times}"
    else:
        yield f"{found.fixed.name} violates nothing: this load needs no ladder"
    loss = found.lost_to_best
    if loss is None:
        yield "no overflow policy with known arrivals violates the SLO as rarely as the ladder did"
    else:
        yield f"quality lost against the best possible at no more violations: {loss:.2%}"
    if question.shares_device and found.gain < HARDLY_TIMES:
        yield HARDLY
