"""What was decided and why: `rollout.json`, `rollout.md`, `rollout.html`."""

import math
from pathlib import Path

import msgspec

from loadtests.report.figures.style import Picture, lay_out, save_png, style
from loadtests.report.html import Html, tag
from loadtests.report.markdown import escaped, titled
from loadtests.report.page_parts import definitions, figure_html, head, section, table_html
from loadtests.report.page_style import SCRIPT
from loadtests.report.tables import Table, cells
from serve_app.config.rollout import RolloutConfig
from serve_app.domain.errors import ConfigError
from serve_app.rollouts.controller import guard_results
from serve_app.rollouts.picture import draw_evidence
from serve_app.rollouts.state import Phase, RolloutState
from serve_app.rollouts.words import guard_row, headline
from serve_app.splits.live_split import told
from serve_app.store.manifest import write_whole

JSON, MARKDOWN, HTML = "rollout.json", "rollout.md", "rollout.html"
FORMAT = 1
_TONES = {Phase.PROMOTED: "pass", Phase.ROLLED_BACK: "fail", Phase.ABORTED: "fail"}


def write_report(config: RolloutConfig, state: RolloutState, folder: Path) -> tuple[Path, ...]:
    """Write every view into the rollout's folder. Raises ConfigError if it cannot."""
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
        cells(
            str(each.step + 1),
            told(each.shares_bp),
            each.verdict,
            f"{each.n_requests:,}",
            f"{each.elapsed_s:,.0f}",
            each.reason,
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
            tuple(cells(*guard_row(guards[each.guard], each)) for each in results),
        )
        for step, results in reversed(steps)
    ]


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
