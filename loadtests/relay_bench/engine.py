"""A real engine's throughput through the router, over that of the same engine asked directly.

A round asks direct, router, router, direct (the next one the other way round): what drifts evenly
meets both alike, so that rounds are taken for independent.
"""

import statistics
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from loadtests.analyse.stats import interval_ranks
from loadtests.relay_bench.client import SENTENCE, Task
from loadtests.relay_bench.nouns import CLIENTS, Seen
from loadtests.relay_bench.processes import run_client
from loadtests.relay_bench.replicas import direct_port, replica
from loadtests.relay_bench.rounds import Settings
from loadtests.relay_bench.upstream import CHAT
from serve_app.config.secrets import internal_token
from serve_app.config.serve_content import serve_content, variant_application
from serve_app.config.serve_file import load_serve_file
from serve_app.domain.errors import ConfigError
from serve_app.reference.large import ensure_large
from serve_app.serving.http import INTERNAL_TOKEN_HEADER
from serve_app.serving.local_serve import LocalServe
from serve_app.serving.ports import free_port, own_ports

DIRECT, ROUTER = "direct", "router"
LARGE = "large"
"""In place of a variant: the shape of `quantile reference large`."""


class EngineRound(msgspec.Struct, frozen=True):
    """Tokens/s of one round, both ways, each of two turns by client processes of their own."""

    direct_tokens_per_s: float
    router_tokens_per_s: float

    @property
    def of_direct(self) -> float:
        """Throughput through the router over the direct one."""
        return self.router_tokens_per_s / self.direct_tokens_per_s


class OfDirect(msgspec.Struct, frozen=True):
    """The median over rounds with its 95 % interval by order statistics: None below six rounds."""

    median: float
    low: float | None
    high: float | None
    n: int


def of_direct(rounds: Sequence[EngineRound]) -> OfDirect | None:
    """Throughput through the router over the direct one, inside each round; None of no round."""
    ratios = sorted(each.of_direct for each in rounds)
    if not ratios:
        return None
    low, high = (None if rank is None else ratios[rank - 1] for rank in ends(len(ratios)))
    return OfDirect(statistics.median(ratios), low, high, len(ratios))


def ends(n: int) -> tuple[int | None, int | None]:
    """Ranks (from 1) of the ends of a median's interval; both or none."""
    low, high = interval_ranks(n, 0.5)
    return (None, None) if low is None or high is None else (low, high)


def large_variant(model: str) -> dict[str, Any]:
    """An application with the large reference shape, made if it is not there; threads as vLLM's
    default has it: a core is left to serving."""
    engine = {
        "dtype": "bfloat16",
        "max_model_len": 1024,
        "max_num_seqs": CLIENTS,
        "kv_cache_memory_bytes": 256 * 2**20,
        "enforce_eager": True,
    }
    return variant_application(
        {
            "model": model,
            "name": LARGE,
            "checkpoint": str(ensure_large()),
            "method": "unquantized",
            "engine": engine,
        }
    )


def one_variant(config: dict[str, Any], variant: str, port: int) -> tuple[dict[str, Any], str]:
    """The Serve file with this variant alone, and its public model. Raises ConfigError."""
    apps = {app["name"]: app for app in config.get("applications", ())}
    if variant == LARGE and LARGE not in apps and "router" in apps:
        apps[LARGE] = large_variant(apps["router"]["args"]["model"])
    if not {"router", variant} <= apps.keys():
        raise ConfigError(
            f"need the applications `router` and `{variant}`, have {', '.join(sorted(apps))}"
        )
    args = dict(apps["router"]["args"])
    model = args.pop("model")
    args.pop("ingress_url", None)
    split = {"split": {variant: 10_000}, "fallback": []}
    return serve_content(port, model, split, [apps[variant]], args), model


def measure(settings: Settings, folder: Path) -> Generator[EngineRound, None, None]:
    """Serve the variant, and load it by both ways in turn; a warm-up comes before.

    The prompt is short: it is generating that costs a router something. Raises ConfigError,
    EngineError, InvalidRunError.
    """
    assert settings.engine is not None
    variant, port = settings.engine, free_port()
    alone, model = one_variant(load_serve_file(Path(settings.engine_config)), variant, port)
    file = folder / "engine.yaml"
    file.write_text(yaml.safe_dump(alone, sort_keys=False))
    with LocalServe(file, log=folder / "engine.log", environ=own_ports()) as serve:
        pid = replica(f"{variant}:VariantServer", serve.pid)
        headers = {INTERNAL_TOKEN_HEADER.decode(): internal_token()}
        ways = {
            DIRECT: (direct_port(pid), f"/variants/{variant}{CHAT}", headers),
            ROUTER: (port, CHAT, {}),
        }

        def ask(way: str, requests: int) -> Seen:
            at_port, path, more = ways[way]
            load = (model, CLIENTS, requests, settings.tokens)
            return run_client(Task(at_port, path, *load, 0.0, "", more, SENTENCE))

        for way in ways:
            ask(way, 1)
        for number in range(settings.engine_rounds):
            yield one_round(number, lambda way: ask(way, settings.engine_requests))


def one_round(number: int, ask: Callable[[str], Seen]) -> EngineRound:
    """Two turns of each way, the one within the other; which is outside changes by round."""
    outer, inner = (DIRECT, ROUTER) if number % 2 == 0 else (ROUTER, DIRECT)
    seen: dict[str, list[Seen]] = {DIRECT: [], ROUTER: []}
    for way in (outer, inner, inner, outer):
        seen[way].append(ask(way))
    return EngineRound(_tokens_per_s(seen[DIRECT]), _tokens_per_s(seen[ROUTER]))


def _tokens_per_s(turns: Sequence[Seen]) -> float:
    return sum(turn.tokens for turn in turns) / sum(turn.wall_s for turn in turns)
