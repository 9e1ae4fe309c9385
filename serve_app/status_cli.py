"""`quantile status`: what the console shows, in a terminal."""

import asyncio
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serve_app.domain.errors import ConfigError, ServerError

KEY_VARIABLE = "QUANTILE_API_KEY"
_STATE = "/console/state"
_TIMEOUT_S, _EVERY_S = 10.0, 1.0
_TONES = {"ready": "green", "asleep": "dim", "breaker open": "yellow", "down": "bold red"}
_GOOD, _BAD = {"pass", "promoted"}, {"fail", "rolled back", "error"}
_BLOCKS = "▁▂▃▄▅▆▇█"
_BAR = 40
_HUES = ("cyan", "magenta", "yellow", "blue")

Json = Mapping[str, Any]


class RouterSilentError(ServerError):
    """The router did not answer, or not with its state."""

    code = "router_silent"


def status(
    url: Annotated[str, typer.Option(help="The router.")] = "http://127.0.0.1:8000",
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew each second.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One snapshot as JSON.")] = False,
) -> None:
    """Show variants, split, ladder, times, shadow, devices and last verdicts of a running router.

    Where the router asks for an API key, set QUANTILE_API_KEY. Figures are those of the replica
    that answers. Exit code 1: the router does not answer, or a variant with a share is down.

    Example: quantile status --url http://127.0.0.1:8000 --watch
    """
    if watch and as_json:
        raise ConfigError("--json is one snapshot: leave out --watch, or call it again and again")
    if watch:
        _watch(url)
        return
    state = asyncio.run(fetch_state(url, os.environ.get(KEY_VARIABLE)))
    if as_json:
        typer.echo(json.dumps(state, indent=2))
    else:
        Console(highlight=False).print(status_view(state))
    raise typer.Exit(1 if serving_down(state) else 0)


def _watch(url: str) -> None:
    key = os.environ.get(KEY_VARIABLE)
    console = Console(highlight=False)
    state = asyncio.run(fetch_state(url, key))  # a wrong address or key is an error, not a picture
    with Live(status_view(state), console=console, screen=console.is_terminal) as live:
        while True:
            time.sleep(_EVERY_S)
            try:
                live.update(status_view(asyncio.run(fetch_state(url, key))))
            except RouterSilentError as error:
                live.update(Text(f"{error}\nTrying again; Ctrl-C ends this.", "red"))


async def fetch_state(url: str, key: str | None) -> dict[str, Any]:
    """The router's `GET /console/state`.

    Raises RouterSilentError, and ConfigError where the key or the address is at fault.
    """
    import aiohttp

    where = f"{url.rstrip('/')}{_STATE}"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(where) as answer,
        ):
            text, code = await answer.text(), answer.status
    except (aiohttp.InvalidURL, ValueError):
        raise ConfigError(f"{url!r} is no address of a router, as http://host:port") from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise RouterSilentError(
            f"{where} does not answer ({error or type(error).__name__}): is the router running, "
            "and is --url right?"
        ) from None
    if code in (401, 403):
        raise ConfigError(f"the router asks for an API key: set {KEY_VARIABLE} to a good one")
    try:
        state = json.loads(text)
    except ValueError:
        state = None
    if code != 200 or not isinstance(state, dict) or "variants" not in state:
        raise RouterSilentError(f"{where} answered {code} and no state: {text[:200]!r}")
    return state


def serving_down(state: Json) -> list[str]:
    """Variants with a share in any split that are down."""
    splits = [rules["split"] for rules in state["aliases"].values()]
    return [
        name
        for name, each in state["variants"].items()
        if each["health"] == "down" and any(split.get(name) for split in splits)
    ]


def status_view(state: Json) -> RenderableType:
    """A snapshot of the console for a terminal."""
    router = state["router"]
    draining = ", draining" if router["draining"] else ""
    head = f"{state['model']}: {router['in_flight']} in flight, {router['waiting']} waiting"
    return Group(
        Text(f"{head}{draining}", "bold"),
        _variants(state["variants"]),
        *(Text(line) for line in _aliases(state["aliases"])),
        *_devices(state),
        *_verdicts(state["reports"]),
    )


def _variants(variants: Json) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for name in ("health", "method"):
        table.add_column(name)
    for name in ("bits", "weights", "replicas", "share", "TTFT P50", "P95", "P99"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("P95, last 5 min", no_wrap=True)
    for name, each in variants.items():
        latency, replicas = each["latency"], each["replicas"]
        times = [latency and latency["ttft_s"][p] for p in ("p50", "p95", "p99")]
        cells = (
            _told(each["scheme"] or each["method"]),
            _told(each["bits"]),
            told_bytes(each["weight_bytes"]),
            f"{replicas['running']}/{_told(replicas['target'])}" if replicas else "-",
            told_share(each["share_bp"]),
            *map(told_time, times),
            sparkline(latency["steps"]["p95"] if latency else ()),
        )
        health = Text(each["health"], _TONES.get(each["health"], ""))
        table.add_row(Text(name), health, *(Text(cell) for cell in cells))
    return table


def _aliases(aliases: Json) -> Iterator[str]:
    for alias, rules in aliases.items():
        yield f"split of {alias}: {_shares(rules['split'])}"
        for name, cohort in rules["cohorts"].items():
            own = _shares(cohort["split"]) if cohort["split"] else "the same split"
            yield f"  cohort {name}: {own}" + (
                f", nothing cheaper than {cohort['floor']}" if cohort["floor"] else ""
            )
        if ladder := rules["ladder"]:
            reason = f" ({ladder['reason']})" if ladder["reason"] else ""
            yield f"  ladder: down to {ladder['rung']}{reason}"
        if shadow := rules["shadow"]:
            n = sum(shadow["mirrored"].values())
            means = ", ".join(f"{k} {v:.3f}" for k, v in shadow["means"].items())
            yield f"  shadow {shadow['variant']}: {n} compared; {means or 'no figures yet'}"


def _devices(state: Json) -> Iterator[Text]:
    for device in state["devices"]:
        line = Text(f"{device['name']}: ")
        for i, part in enumerate(device["parts"]):
            line.append("█" * max(1, round(_BAR * part["share"])), _HUES[i % len(_HUES)])
        line.append("░" * round(_BAR * device["free_share"]))
        parts = (
            f"{part['variant']} {100 * part['share']:.1f} % ({told_bytes(part['n_bytes'])})"
            for part in device["parts"]
        )
        line.append(f"  {', '.join(parts)}")
        yield line
    if state["not_placed"]:
        yield Text(f"on no device, or not known: {', '.join(state['not_placed'])}", "dim")


def _verdicts(reports: Json) -> Iterator[Text]:
    if reports["missing"]:
        yield Text(f"verdicts: {reports['missing']}", "dim")
        return
    for kind in ("campaign", "rollout"):
        found = reports[kind]
        if found is None:
            yield Text(f"last {kind}: none found", "dim")
            continue
        verdict = found["verdict"]
        tone = "green" if verdict in _GOOD else "red" if verdict in _BAD else "yellow"
        yield Text.assemble(f"last {kind}, {found['name']}: ", (verdict, tone))
        yield from (Text(f"  {line}") for line in found["lines"])


def sparkline(values: Any) -> str:
    """Blocks from the least to the most; a space where a value is None."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    least, most = min(known), max(known)
    steps = (len(_BLOCKS) - 1) / (most - least) if most > least else 0.0
    return "".join(
        " " if value is None else _BLOCKS[round((value - least) * steps)] for value in values
    )


def told_bytes(n_bytes: float | None) -> str:
    """In binary units; - where it is not known."""
    if n_bytes is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.3g} TiB"


def told_time(time_s: float | None) -> str:
    """Milliseconds below a second; - where it is not known."""
    if time_s is None:
        return "-"
    return f"{1000 * time_s:.3g} ms" if time_s < 0.9995 else f"{time_s:.3g} s"


def told_share(share_bp: int) -> str:
    """Basis points as per cent."""
    return f"{share_bp / 100:g} %"


def _shares(shares_bp: Json) -> str:
    return ", ".join(f"{name} {told_share(share)}" for name, share in shares_bp.items())


def _told(value: object) -> str:
    return "-" if value is None else str(value)
