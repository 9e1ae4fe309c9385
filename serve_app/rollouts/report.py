"""What was decided and why: `rollout.json`, `rollout.md`, `rollout.html`."""

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadtests.report.figures.style import Picture
from loadtests.report.html import Html, tag
from loadtests.report.markdown import escaped, titled
from loadtests.report.page_parts import definitions, figure_html, head, section, table_html
from loadtests.report.page_style import SCRIPT
from loadtests.report.tables import Cell, Table
from serve_app.config.rollout import RolloutConfig
from serve_app.domain.errors import ConfigError
from serve_app.rollout.guards import Guard
from serve_app.rollouts.controller import guard_results
from serve_app.rollouts.live_split import told
from serve_app.rollouts.state import GuardResult, Phase, RolloutState
from serve_app.store.manifest import write_whole

JSON, MARKDOWN, HTML = "rollout.json", "rollout.md", "rollout.html"
FORMAT = 1
_TONES = {Phase.PROMOTED: "pass", Phase.ROLLED_BACK: "fail", Phase.ABORTED: "fail"}


def write_report(config: RolloutConfig, state: RolloutState, folder: Path) -> tuple[Path, ...]:
    """Write every view into the rollout's folder. Raises ConfigError if it cannot."""
    # matplotlib takes a second to import
    from loadtests.report.figures.style import lay_out, save_png, style
    from serve_app.rollouts.picture import draw_evidence

    try:
        with style():
            picture = draw_evidence(config, state)
            if picture is not None:
                lay_out(picture.figure)
                save_png(picture, folder)
            texts = {HTML: render_page(config, state, picture)}
        texts[MARKDOWN] = render_markdown(config, state, picture)
        texts[JSON] = encode(config, state)
        for name, text in texts.items():
            write_whole(folder / name, text)
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}") from None
    return tuple(folder / name for name in texts)


def headline(config: RolloutConfig, state: RolloutState) -> str:
    """The outcome in one sentence."""
    last = state.steps[-1] if state.steps else None
    names = f"{config.candidate} (from {config.baseline})"
    outcome = {
        Phase.RUNNING: f"{names} is under way, in step {state.standing.step + 1} of "
        f"{len(config.steps)}",
        Phase.PROMOTED: f"{names} is promoted",
        Phase.ROLLED_BACK: f"{names} is rolled back",
        Phase.INCONCLUSIVE: f"{names} is undecided: {config.baseline} stays",
        Phase.ABORTED: f"{names} was called off",
    }[state.phase]
    is_reason = last is not None and state.phase not in (Phase.RUNNING, Phase.ABORTED)
    return f"{outcome}: {last.reason}" if last is not None and is_reason else outcome


def encode(config: RolloutConfig, state: RolloutState) -> str:
    """`rollout.json`."""
    content = {
        "format": FORMAT,
        "outcome": state.phase,
        "headline": headline(config, state),
        "exit_status": state.exit_status,
        "rollout": config.model_dump(mode="json"),
        "started_at": state.started_at,
        "split_before_bp": state.original_bp,
        "split_now_bp": state.current_bp,
        "steps": msgspec.to_builtins(state.steps),
        "points": msgspec.to_builtins(state.points),
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=1).decode() + "\n"


def render_markdown(config: RolloutConfig, state: RolloutState, picture: Picture | None) -> str:
    """`rollout.md`."""
    parts = [f"# Rollout of {escaped(config.candidate)}", escaped(f"{headline(config, state)}.")]
    parts += [titled(table) for table in (steps_table(state), *guard_tables(config, state))]
    if picture is not None:
        parts.append(f"![{escaped(picture.title)}]({picture.name}.png)")
    parts += [f"- {escaped(name)}: {escaped(text)}" for name, text in _facts(config, state).items()]
    return "\n\n".join(parts) + "\n"


def render_page(config: RolloutConfig, state: RolloutState, picture: Picture | None) -> str:
    """`rollout.html`: one file that needs nothing else. Within `style()`."""
    drawn = [figure_html(picture)] if picture is not None else []
    tables = [table_html(table) for table in guard_tables(config, state)]
    sections = [
        section("steps", "Steps", [table_html(steps_table(state))]),
        section("evidence", "Evidence", [*drawn, *tables]),
        section("facts", "Facts", [definitions(_facts(config, state))]),
        section("rollout", "The rollout file", [tag("pre", config.model_dump_json(indent=1))]),
    ]
    title = f"Rollout of {config.candidate}"
    tone = _TONES.get(state.phase, "inconclusive")
    verdict = tag("p", f"{headline(config, state)}.", class_="answer")
    body = [
        tag("header", tag("h1", title), tag("div", verdict, class_=f"verdict {tone}")),
        tag("main", *(html for _, _, html in sections if html)),
        tag("script", Html(SCRIPT)),
    ]
    return "<!DOCTYPE html>\n" + tag("html", head(title), tag("body", *body), lang="en") + "\n"


def steps_table(state: RolloutState) -> Table:
    """Each step that is over, with its verdict."""
    rows = tuple(
        (
            Cell(str(each.step + 1)),
            Cell(told(each.shares_bp)),
            Cell(each.verdict),
            Cell(f"{each.n_requests:,}"),
            Cell(f"{each.elapsed_s:,.0f}"),
            Cell(each.reason),
        )
        for each in state.steps
    )
    header = ("step", "split, bp", "verdict", "requests", "seconds", "reason")
    return Table("Steps; requests are the candidate's", header, rows)


def guard_tables(config: RolloutConfig, state: RolloutState) -> list[Table]:
    """What each guard saw, a table for each step, the last first."""
    plan = config.to_plan()
    steps = [(each.step, each.guards) for each in state.steps]
    if state.phase is Phase.RUNNING and state.pending is None and state.standing.step >= 0:
        steps.append((state.standing.step, guard_results(plan, state)))
    guards = {guard.name: guard for guard in plan.guards}
    return [
        Table(
            f"Guards in step {step + 1}; e-values as powers of ten, "
            f"{-math.log10(config.alpha):.2f} decides",
            (
                *("guard", "units", "candidate over baseline", "tolerated", "margin"),
                *("e against", "e for margin", "dependence", "threshold, s"),
            ),
            tuple(guard_row(guards[each.guard], each) for each in results),
        )
        for step, results in reversed(steps)
    ]


def guard_row(guard: Guard, result: GuardResult) -> tuple[Cell, ...]:
    """One guard in one step, in words."""
    threshold_s = result.threshold_s
    return (
        Cell(guard.name),
        Cell(f"{result.n:,}"),
        Cell("-" if result.excess is None else guard.says(result.excess)),
        Cell(guard.says(guard.tolerated)),
        Cell(guard.says(guard.margin)),
        Cell(f"{result.against:+.2f}"),
        Cell(f"{result.margin:+.2f}"),
        Cell(f"{result.dependence:.1f}"),
        Cell("-" if threshold_s is None else f"{threshold_s:.4g}"),
    )


def _facts(config: RolloutConfig, state: RolloutState) -> dict[str, str]:
    return {
        "started": state.started_at,
        "model": config.model,
        "split before": told(state.original_bp),
        "split now": told(state.current_bp),
        "alpha": f"{config.alpha:g}: chance of a wrong rollback over all guards, steps and looks; "
        "chance of promoting what is worse than a margin",
        "exit status": "-" if state.exit_status is None else str(state.exit_status),
    }


def lines_of(config: RolloutConfig, state: RolloutState) -> Sequence[str]:
    """For a terminal: the headline, and the split."""
    return (f"{headline(config, state)}.", f"Split: {told(state.current_bp)}")
