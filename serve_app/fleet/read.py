"""From a Serve config file to what the planner takes: arguments, replicas, checkpoint facts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from serve_app.config.replicas import ReplicaBounds, replica_bounds
from serve_app.config.schema import VariantArgs
from serve_app.config.serve_file import (
    ROUTER_IMPORT,
    VARIANT_IMPORT,
    check_serve_file,
    load_serve_file,
    router_split,
)
from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import NOMINAL_BITS, QuantMethod, QuantScheme
from serve_app.fleet.plan import FleetVariant
from serve_app.planning.facts import CheckpointFacts
from serve_app.planning.shape import shape_from_config
from serve_app.planning.weights import weights_from_shape
from serve_app.store.facts import checkpoint_facts
from serve_app.store.facts_lock import facts_path, load_facts

_GROUP_SIZE = 128


@dataclass(frozen=True)
class FleetFile:
    """A config file as the planner sees it."""

    path: Path
    variants: tuple[FleetVariant, ...]
    unplanned: tuple[str, ...]
    """Variants of fake engines, which take no memory worth planning."""
    facts: Mapping[str, CheckpointFacts] = field(default_factory=dict)
    """Of checkpoints elsewhere, by uri: what `facts_lock` keeps beside the file."""


def read_fleet(
    path: Path,
    *,
    refresh: bool = False,
    assume: Path | None = None,
    progress: Callable[[str], None] = lambda uri: None,
) -> FleetFile:
    """Everything that a plan of the file needs; reads headers, no weights.

    Facts of checkpoints on this machine are read from their headers each time. Those of checkpoints
    elsewhere come from the facts file beside the config, or, if it lacks them or with `refresh`,
    from the checkpoint's headers; with `assume`, a `config.json`, from that shape and the declared
    method where there are none. Raises ConfigError or CheckpointError.
    """
    arguments = check_serve_file(path)
    content = load_serve_file(path)
    bounds, weights = _bounds_and_weights(content, path)
    known = dict(load_facts(facts_path(path)))
    assumed = _read_config(assume) if assume else None
    facts: dict[str, CheckpointFacts] = {}
    for args in arguments:
        uri = args.checkpoint
        if args.engine.kind == "fake" or uri in facts:
            continue
        progress(uri)
        if not is_remote(uri):
            facts[uri] = checkpoint_facts(uri, 4 if args.engine.dtype == "float32" else 2)
        elif assumed is not None and (refresh or uri not in known):
            facts[uri] = _assumed_facts(args, assumed)
        elif refresh or uri not in known:
            facts[uri] = _from_elsewhere(uri)
        else:
            facts[uri] = known[uri]
    return FleetFile(
        path,
        tuple(
            FleetVariant(args, bounds[args.name], facts[args.checkpoint], weights[args.name])
            for args in arguments
            if args.checkpoint in facts and args.engine.kind != "fake"
        ),
        tuple(args.name for args in arguments if args.engine.kind == "fake"),
        {uri: found for uri, found in facts.items() if is_remote(uri)},
    )


def is_remote(uri: str) -> bool:
    """Whether reading the checkpoint crosses a network."""
    return uri.startswith(("s3://", "hf://"))


def _from_elsewhere(uri: str) -> CheckpointFacts:
    try:
        return checkpoint_facts(uri)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}\nTo plan without reaching it, give the model's config.json with --assume: "
            "weights are then computed from its shape and the declared method"
        ) from None


def _bounds_and_weights(
    content: dict[str, Any], path: Path
) -> tuple[dict[str, ReplicaBounds], dict[str, float]]:
    bounds, weights = {}, {}
    shares: Mapping[str, int] = {}
    for application in content["applications"]:
        if application.get("import_path") == ROUTER_IMPORT:
            shares = router_split(application, path).shares_bp
    for application in content["applications"]:
        if application.get("import_path") == VARIANT_IMPORT:
            name = application["args"]["name"]
            bounds[name] = replica_bounds(application)
            weights[name] = float(max(shares.get(name, 0), 1))
    return bounds, weights


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{path} is not a config.json: {error}") from None


def _assumed_facts(args: VariantArgs, config: dict[str, Any]) -> CheckpointFacts:
    shape, scheme = shape_from_config(config), assumed_scheme(args.method)
    return CheckpointFacts(args.checkpoint, shape, scheme, weights_from_shape(shape, scheme))


def assumed_scheme(method: QuantMethod) -> QuantScheme:
    """The usual storage of a method, where there is no checkpoint to ask."""
    bits = NOMINAL_BITS[method]
    grouped = method in {QuantMethod.GPTQ, QuantMethod.AWQ}
    has_eight_bit_activations = method in {QuantMethod.INT8_W8A8, QuantMethod.FP8}
    plain = method is QuantMethod.UNQUANTIZED
    return QuantScheme(
        method,
        bits=bits,
        activation_bits=8 if has_eight_bit_activations else 16,
        group_size=_GROUP_SIZE if grouped else None,
        symmetric=method is not QuantMethod.AWQ,
        container="plain" if plain else "compressed-tensors",
    )
