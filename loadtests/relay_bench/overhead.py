"""`quantile bench overhead`: what the router costs, beside other ways to relay the same stream."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtests.relay_bench.budgets import Verdict
from loadtests.relay_bench.rounds import Settings
from serve_app.domain.errors import ConfigError


def overhead(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved; a warm-up comes before.")] = 3,
    clients: Annotated[list[int], typer.Option(min=1, help="May be repeated.")] = [  # noqa: B006
        *(1, 16, 64, 256)
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 64,
    ttft_ms: Annotated[float, typer.Option(min=0, help="The variant's time to first token.")] = 50,
    itl_ms: Annotated[float, typer.Option(min=0.1, help="The variant's time per token.")] = 10,
    steps: Annotated[
        bool,
        typer.Option(
            help="The tokens of all streams at the same moments, as engines that batch send them; "
            "else each stream at its own."
        ),
    ] = False,
    peers: Annotated[
        bool,
        typer.Option(
            help="Also LiteLLM's proxy and SGLang's gateway, installed by pip into environments "
            "of their own under ~/.cache/quantile (the first time; about 1 GB)."
        ),
    ] = False,
    tracing: Annotated[
        bool,
        typer.Option(
            help="Also the router with metrics and traces, of each request and of one in a "
            "hundred, and with the request log, at the same time as one that tells nothing."
        ),
    ] = False,
    parts: Annotated[
        bool,
        typer.Option(
            help="Also what a way costs at rest, per request and per token, at 16 clients: from "
            "short and long answers (a sixteenth and four times --tokens)."
        ),
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Also a real engine's throughput: a variant of --engine-config, or `large`, 182 "
            "million random parameters in bfloat16 (365 MB, made if not there)."
        ),
    ] = None,
    engine_config: Annotated[Path, typer.Option(help="A Serve config file.")] = Path(
        "configs/local.yaml"
    ),
    engine_rounds: Annotated[
        int, typer.Option(min=1, help="Below 6 nothing is decided of the engine.")
    ] = 10,
    engine_requests: Annotated[
        int,
        typer.Option(min=1, help="Of each client at each of a round's four turns."),
    ] = 8,
    engine_only: Annotated[
        bool, typer.Option("--engine-only", help="With --engine: nothing else is measured.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; default reports/overhead-<time>.")
    ] = None,
) -> None:
    """Measure what the router costs: CPU per token, added TTFT, streams/s, side by side.

    Ways: direct, one HAProxy pass, the router in a Serve replica, the same behind Serve's ingress,
    the same over Serve handles, and on request its peers. It runs a Serve of its own, beside any
    other. Exit status: 1 a budget is missed, else 0. The engine's is kept or missed only where the
    whole 95 % interval of its rounds is on that side of the limit; else it is not decided.

    Examples:

    quantile bench overhead

    quantile bench overhead --peers --engine gptq --rounds 5

    quantile bench overhead --engine gptq --engine-only

    quantile bench overhead --engine large --engine-only --engine-requests 1 --tokens 32

    quantile bench overhead --tracing --clients 16

    quantile bench overhead --parts --peers --clients 16
    """
    if engine_only and engine is None:
        raise ConfigError("--engine-only needs --engine: a variant of --engine-config")
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = (out or Path("reports") / f"overhead-{stamp}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        rounds=rounds,
        clients=tuple(clients),
        tokens=tokens,
        ttft_ms=ttft_ms,
        itl_ms=itl_ms,
        steps=steps,
        peers=peers,
        engine=engine,
        engine_config=str(engine_config),
        tracing=tracing,
        engine_rounds=engine_rounds,
        engine_requests=engine_requests,
        engine_only=engine_only,
        parts=parts,
    )
    from loadtests.relay_bench.run import run

    findings = run(settings, folder, Console())
    raise typer.Exit(int(any(each.verdict is Verdict.MISSED for each in findings)))
