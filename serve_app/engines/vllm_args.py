"""From our engine settings to the arguments of vLLM's own server, checked by vLLM's own parser."""

import argparse
import json
import os
from typing import Any, NoReturn

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from serve_app.config.schema import EngineSettings
from serve_app.config.tracing import traces_url
from serve_app.domain.errors import ConfigError
from serve_app.engines.engine import EngineSpec

OWNED = {
    "model": "set `checkpoint`",
    "model_tag": "set `checkpoint`",
    "served_model_name": "set `model` and `name`",
    "host": "the application is reached through Ray Serve",
    "port": "the application is reached through Ray Serve",
    "uds": "the application is reached through Ray Serve",
    "root_path": "it follows from the application's route_prefix",
    "api_key": "the router checks keys",
    "config": "write what it holds as engine_args",
    "data_parallel_size": "set the deployment's num_replicas",
    "api_server_count": "set the deployment's num_replicas",
}
"""Arguments that QuanTile sets itself, and what to set instead."""

_TYPED = tuple(
    name
    for name in EngineSettings.model_fields
    if name not in {"kind", "threads", "engine_args", "fake"}
)


class _RaisingParser(FlexibleArgumentParser):  # type: ignore[misc]
    """vLLM's parser, but a wrong argument is an exception and not the end of the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"vLLM refuses the engine arguments: {message}")


def server_arguments(spec: EngineSpec) -> argparse.Namespace:
    """All of vLLM's server arguments for this engine, defaults included.

    Raises ConfigError for a name that vLLM does not know (with the nearest and the whole list), one
    that QuanTile owns, one that is typed in our schema, or a value of the wrong type.
    """
    parser = make_arg_parser(_RaisingParser())
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    _check_names(spec.settings.engine_args, set(actions))
    values = {
        "model": spec.model_uri or str(spec.checkpoint_dir),
        "served_model_name": list(spec.served_names),
        **{name: getattr(spec.settings, name) for name in _TYPED},
        "otlp_traces_endpoint": traces_url(os.environ),
        **spec.settings.engine_args,
    }
    argv = [
        word
        for name, value in values.items()
        if value is not None
        for word in _words(actions[name], value)
    ]
    arguments: argparse.Namespace = parser.parse_args(argv)
    return arguments


def _check_names(engine_args: dict[str, Any], known: set[str]) -> None:
    for name in engine_args:
        if name in OWNED:
            raise ConfigError(f"engine_args.{name} is set by QuanTile: {OWNED[name]}")
        if name in _TYPED:
            raise ConfigError(f"engine_args.{name} has a place of its own: set engine.{name}")
        if name not in known:
            names = ", ".join(sorted(known - set(OWNED) - set(_TYPED)))
            raise ConfigError(
                f"engine_args.{name} is not an argument of vLLM's server; vLLM knows: {names}"
            )


def _words(action: argparse.Action, value: Any) -> list[str]:
    """A value as vLLM's command line takes it."""
    name = action.dest.replace("_", "-")
    if value is True:
        return [f"--{name}"]
    if value is False:
        has_negation = not isinstance(action, argparse._StoreTrueAction)
        return [f"--no-{name}"] if has_negation else []
    if isinstance(value, list):
        return _list_words(action, f"--{name}", value)
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(value)}"]
    return [f"--{name}={value}"]


def _list_words(action: argparse.Action, flag: str, items: list[Any]) -> list[str]:
    if action.nargs == "+":
        return [flag, *(str(item) for item in items)]
    if isinstance(action, argparse._AppendAction):
        return [f"{flag}={item}" for item in items]
    if action.type is json.loads:
        return [f"{flag}={json.dumps(items)}"]
    raise ConfigError(
        f"vLLM refuses the engine arguments: engine_args.{action.dest} takes one value, "
        f"have the list {items}"
    )
