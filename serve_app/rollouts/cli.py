"""`quantile rollout`: from a baseline to a candidate, step by step, as the evidence allows."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def rollout(
    file: Annotated[Path, typer.Argument(help="A file of configs/rollouts/.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of state and report; the same folder goes on. "
            "Default reports/rollout-<name>."
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Show steps and tests; change nothing."),
    ] = False,
    simulate: Annotated[
        int,
        typer.Option(
            min=0,
            help="With --plan: simulated rollouts of each kind, to see how the "
            "plan errs and how long it takes.",
        ),
    ] = 0,
    abort: Annotated[
        bool, typer.Option("--abort", help="End the rollout, and put the split back.")
    ] = False,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="With --abort: leave the split as it is.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Serve the rollout's metrics here, and for 30 s more when it is over.",
        ),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="With --metrics-port: the address; 0.0.0.0 in a pod.")
    ] = "127.0.0.1",
) -> None:
    """Move traffic from a baseline to a candidate variant in steps, and decide on evidence.

    Errors, latencies and answers of both are compared by tests that hold however often one looks. A
    candidate that is shown to be worse is rolled back; one that is shown to be within every margin
    goes on to the next step; where neither is shown in time the baseline stays.

    Ctrl-C leaves the split as it is, and the same command goes on; so does it after a crash.

    Exit status: 0 promoted, 1 rolled back or aborted, 2 wrong input, or somebody else changed the
    split, 3 inconclusive, 4 the split could not be reached.

    Examples:

        quantile rollout configs/rollouts/canary-int8-to-gptq.yaml --plan --simulate 100

        quantile rollout configs/rollouts/canary-int8-to-gptq.yaml

        quantile rollout configs/rollouts/canary-int8-to-gptq.yaml --abort
    """
    from serve_app.config.rollout import read_rollout
    from serve_app.domain.errors import ConfigError
    from serve_app.rollouts.command import abort_rollout, run_rollout
    from serve_app.rollouts.preview import show_plan

    if keep_split and not abort:
        raise ConfigError("--keep-split goes with --abort")
    if simulate and not plan:
        raise ConfigError("--simulate goes with --plan")
    console = Console()
    config = read_rollout(file)
    folder = out or Path("reports") / f"rollout-{file.stem}"
    if plan:
        show_plan(config, simulate, console)
    elif abort:
        raise typer.Exit(abort_rollout(config, folder, console, keep_split=keep_split))
    else:
        status = run_rollout(
            config, folder, console, metrics_port=metrics_port, metrics_host=metrics_host
        )
        raise typer.Exit(status)
