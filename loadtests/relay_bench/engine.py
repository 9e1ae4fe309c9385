"""A real engine's throughput through the router, over that of the same engine asked directly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from loadtests.relay_bench.client import Task
from loadtests.relay_bench.figures import Spread, spread
from loadtests.relay_bench.processes import run_client
from loadtests.relay_bench.replicas import direct_port, replica
from loadtests.relay_bench.upstream import CHAT
from serve_app.config.secrets import internal_token
from serve_app.config.serve_content import serve_content
from serve_app.config.serve_file import load_serve_file
from serve_app.domain.errors import ConfigError
from serve_app.serving.http import INTERNAL_TOKEN_HEADER
from serve_app.serving.local_serve import LocalServe
from serve_app.serving.ports import free_port, own_ports


class EngineRound(msgspec.Struct, frozen=True):
    """Tokens/s of one round, both ways, each from a client process of its own."""

    direct_tokens_per_s: float
    router_tokens_per_s: float


def of_direct(rounds: Sequence[EngineRound]) -> Spread | None:
    """Throughput through the router over the direct one, inside each round."""
    return spread(each.router_tokens_per_s / each.direct_tokens_per_s for each in rounds)


def one_variant(config: dict[str, Any], variant: str, port: int) -> tuple[dict[str, Any], str]:
    """The Serve file with this variant alone, and its public model. Raises ConfigError."""
    apps = {app["name"]: app for app in config.get("applications", ())}
    if not {"router", variant} <= apps.keys():
        raise ConfigError(
            f"need the applications `router` and `{variant}`, have {', '.join(sorted(apps))}"
        )
    args = dict(apps["router"]["args"])
    model = args.pop("model")
    args.pop("ingress_url", None)
    split = {"split": {variant: 10_000}, "fallback": []}
    return serve_content(port, model, split, [apps[variant]], args), model


def measure(
    config_file: Path, variant: str, folder: Path, *, rounds: int, clients: int, tokens: int
) -> list[EngineRound]:
    """Serve the variant, and load it by both ways in turn; the first round is not kept.

    Raises ConfigError, EngineError, InvalidRunError.
    """
    port = free_port()
    alone, model = one_variant(load_serve_file(config_file), variant, port)
    file = folder / "engine.yaml"
    file.write_text(yaml.safe_dump(alone, sort_keys=False))
    with LocalServe(file, log=folder / "engine.log", environ=own_ports()) as serve:
        pid = replica(f"{variant}:VariantServer", serve.pid)
        headers = {INTERNAL_TOKEN_HEADER.decode(): internal_token()}

        def tokens_per_s(at_port: int, path: str, more: dict[str, str]) -> float:
            task = Task(at_port, path, model, clients, 2, tokens, 0.0, "", more)
            seen = run_client(task)
            return seen.tokens / seen.wall_s

        ways = {
            "direct": (direct_port(pid), f"/variants/{variant}{CHAT}", headers),
            "router": (port, CHAT, {}),
        }
        kept = []
        for number in range(rounds + 1):
            order = list(ways) if number % 2 else list(reversed(ways))
            seen = {name: tokens_per_s(*ways[name]) for name in order}
            if number:
                kept.append(EngineRound(seen["direct"], seen["router"]))
    return kept
