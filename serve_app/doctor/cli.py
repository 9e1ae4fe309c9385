"""`quantile doctor`: does this machine have what QuanTile needs, and what to change."""

import json
from dataclasses import asdict
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False,
) -> None:
    """Look at versions, CPU, GPU, HAProxy, memory, disk, ports, variants and secrets.

    Changes nothing. Exit code 1: something would fail; warnings alone are 0.

    Example: quantile doctor --json
    """
    from rich.console import Console
    from rich.table import Table

    from serve_app.doctor.findings import Health
    from serve_app.doctor.look import look

    found = list(look())
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], indent=2))
    else:
        table = Table(box=None, pad_edge=False)
        table.add_column("", no_wrap=True)
        for head in ("", "have", "what to change"):
            table.add_column(head, overflow="fold")
        styles = {Health.OK: "green", Health.WARN: "yellow", Health.FAIL: "red"}
        for each in found:
            health = f"[{styles[each.health]}]{each.health}[/]"
            table.add_row(health, each.about, each.have, each.fix)
        Console().print(table)
    raise typer.Exit(1 if any(each.health is Health.FAIL for each in found) else 0)
