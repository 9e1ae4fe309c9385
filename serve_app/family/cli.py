"""`quantile family`: every recipe made, gated, served, judged and timed, in one table."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from serve_app.domain.errors import BuildError, ConfigError, EngineError
from serve_app.domain.verdict import Verdict
from serve_app.quantize.catalogue import recipe, recipes
from serve_app.quantize.recipes import Recipe

if TYPE_CHECKING:
    from serve_app.domain.quality import QualityReport

QUALITY = Path("quality") / "quality.json"
ATTEMPTS = 2
"""An engine that woke too late for its first requests is asked for what is missing once more."""


def family(
    only: Annotated[
        list[str] | None,
        typer.Option(help="A recipe beside the baseline; may be repeated. Default: all."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All items and windows: hours, not minutes.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of the speed figures.")] = 3,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the endpoint.")] = 8000,
    out: Annotated[Path, typer.Option(help="Folder of the table and its evidence.")] = Path(
        "reports/family"
    ),
) -> None:
    """Make every variant of the reference model, judge each behind one endpoint, time each engine.

    One table: bytes, ratio to the baseline, perplexity ratio, KL, exact match with interval,
    tokens/s at batch 1, 8 and 32. Engines sleep until they are asked, so that all fit. A run that
    was cut off goes on in the same folder. Exit code 1: a variant fails its gate or its bar.

    Examples:

        quantile family

        quantile family --only gptq --only gguf-q4-k-m --out /tmp/family
    """
    chosen = [recipe("baseline")]
    if files := [name for name in only or () if name.endswith(".yaml")]:
        raise ConfigError(f"{files[0]}: a family is of shipped recipes; give their names")
    chosen += [recipe(name) for name in only or recipes() if name != "baseline"]
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    names = [each.name for each in chosen]
    console.rule("1. Make and gate")
    _quantile(["reference", "build", *_each("--only", names)], BuildError)
    console.rule("2. Serve and judge")
    _judge(chosen, out, port, full)
    console.rule("3. Time")
    _time(names, out, rounds)
    console.rule("4. Result")
    raise typer.Exit(0 if _show(chosen, out, console) else 1)


def _judge(chosen: Sequence[Recipe], out: Path, port: int, full: bool) -> None:
    """Serve and ask; the report is in `out/quality`, and its verdicts are the table's to show."""
    from serve_app.family.serve_file import write_family
    from serve_app.serving.local_serve import LocalServe

    file = out / "serve.yaml"
    write_family(file, chosen, port)
    with LocalServe(file, log=out / "serve.log") as serve:
        words = ["eval", "--base-url", f"{serve.base_url}/v1", "--baseline", chosen[0].name]
        words += ["--out", str(out / "quality"), "--timeout-s", "300"]
        words += [] if full else ["--quick"]
        for _ in range(ATTEMPTS):
            _quantile(words, EngineError, allowed=(0, 1, 3))
            if Verdict.ERROR not in {each.verdict for each in _report(out).variants}:
                break


def _time(names: Sequence[str], out: Path, rounds: int) -> None:
    from serve_app.reference.locate import has_twin

    timed = [name for name in names if not has_twin(name)]
    words = ["reference", "speed", *_each("--only", timed)]
    _quantile([*words, "--rounds", str(rounds), "--out", str(out / "speed.json")], EngineError)


def _show(chosen: Sequence[Recipe], out: Path, console: Console) -> bool:
    """Print and write the table. Whether no variant failed; one that is undecided did not."""
    from serve_app.family.picture import draw
    from serve_app.family.table import HEAD, cells, markdown, rows
    from serve_app.reference.build import weights_bytes
    from serve_app.reference.locate import has_twin, resolve
    from serve_app.reference.speed import result_from_json

    report = _report(out)
    speed = result_from_json(json.loads((out / "speed.json").read_text(encoding="utf-8")))
    sizes = {each.name: weights_bytes(resolve(f"reference://{each.name}")) for each in chosen}
    twins = {each.name: has_twin(each.name) for each in chosen}
    table = rows(chosen, sizes, twins, report, speed)
    notes = [f"{row.name} has no tok/s: {row.why_no_speed}" for row in table if row.why_no_speed]
    machine = ", ".join(f"{key} {value}" for key, value in speed.machine.items())
    (out / "family.md").write_text(markdown(table, [machine, *notes]), encoding="utf-8")
    draw(table, out / "family.png")
    shown = Table(*(head.replace("\\", "") for head in HEAD))
    for row in table:
        shown.add_row(*cells(row))
    console.print(shown)
    console.print(
        f"{out / 'family.md'}, {out / 'family.png'}, {out / QUALITY}, {out / 'speed.json'}"
    )
    return not {each.verdict for each in report.variants} & {Verdict.FAIL, Verdict.ERROR}


def _report(out: Path) -> "QualityReport":
    from serve_app.domain.quality import decode_report

    return decode_report((out / QUALITY).read_bytes(), str(out / QUALITY))


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _quantile(
    words: Sequence[str],
    error: type[BuildError] | type[EngineError],
    allowed: Sequence[int] = (0,),
) -> None:
    """A command in a process of its own: engines start in it, and none of them may linger."""
    code = subprocess.run([sys.executable, "-m", "serve_app.cli", *words], check=False).returncode
    if code not in allowed:
        raise error(f"`quantile {' '.join(words[:2])}` ended with exit code {code}: see above")
