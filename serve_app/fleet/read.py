"""From a Serve config file to what the planner takes: arguments, replicas, checkpoint facts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from serve_app.config.replicas import ReplicaBounds, replica_bounds
from serve_app.config.schema import VariantArgs
from serve_app.config.serve_file import (
    ROUTER_IMPORT,
    VARIANT_IMPORT,
    check_serve_content,
    load_serve_file,
    router_user_config,
)
from serve_app.config.sizing import dtype_bytes
from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import NOMINAL_BITS, QuantMethod, QuantScheme, stored_alike
from serve_app.fleet.plan import FleetVariant
from serve_app.planning.facts import CheckpointFacts
from serve_app.planning.shape import shape_from_config
from serve_app.planning.weights import weights_from_shape
from serve_app.reference.locate import SCHEME
from serve_app.store.facts import checkpoint_facts
from serve_app.store.facts_lock import facts_path, load_facts

_GROUP_SIZE = 128
_LOCKED_DTYPE_BYTES = 2
"""The facts file is about engines of 16-bit types; float32 is read anew."""


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
    path: Path, *, as_written: bool = False, refresh: bool = False, assume: Path | None = None
) -> FleetFile:
    """Everything that a plan of the file needs; reads headers, no weights.

    Facts of checkpoints on this machine are read from their headers each time. Those of checkpoints
    elsewhere come from the facts file beside the config, or, if it lacks them or with `refresh`,
    from the checkpoint's headers. `assume`, a `config.json`, stands in for every checkpoint that is
    not on this machine: its shape, and the usual storage of the declared method. `as_written`
    holds the file's own numbers against each other. Raises ConfigError or CheckpointError.
    """
    content = load_serve_file(path)
    arguments = check_serve_content(content, path, planned=as_written)
    bounds, weights = _bounds_and_weights(content, path)
    look_up = _Facts(
        {} if refresh else load_facts(facts_path(path)), _read_config(assume) if assume else None
    )
    variants = tuple(
        FleetVariant(args, bounds[args.name], look_up(args), weights[args.name])
        for args in arguments
        if args.engine.kind != "fake"
    )
    fakes = tuple(args.name for args in arguments if args.engine.kind == "fake")
    return FleetFile(path, variants, fakes, look_up.elsewhere)


class _Facts:
    """Facts of each variant's checkpoint; each checkpoint is read once."""

    def __init__(
        self, known: Mapping[str, CheckpointFacts], assumed: dict[str, Any] | None
    ) -> None:
        self._known = known
        self._assumed = assumed
        self._found: dict[tuple[str, int], CheckpointFacts] = {}
        self.elsewhere: dict[str, CheckpointFacts] = {}

    def __call__(self, args: VariantArgs) -> CheckpointFacts:
        uri, n_bytes = args.checkpoint, dtype_bytes(args.engine)
        if self._assumed is not None and (is_remote(uri) or not is_here(uri)):
            facts = _assumed_facts(args, self._assumed, n_bytes)
        elif (uri, n_bytes) in self._found:
            facts = self._found[uri, n_bytes]
        elif uri in self._known and n_bytes == _LOCKED_DTYPE_BYTES and is_remote(uri):
            facts = self._known[uri]
        else:
            facts = _read(uri, n_bytes)
        self._found[uri, n_bytes] = facts
        if is_remote(uri) and n_bytes == _LOCKED_DTYPE_BYTES:
            self.elsewhere[uri] = facts
        found = facts.scheme.method
        if found is not args.method and not stored_alike(found, args.method):
            raise CheckpointError(
                f"variant {args.name} declares {args.method}, and its checkpoint is "
                f"{facts.scheme.describe()}: {uri}. Declare `method: {found}`, or point "
                "`checkpoint` elsewhere"
            )
        return facts


def is_remote(uri: str) -> bool:
    """Whether reading the checkpoint crosses a network."""
    return uri.startswith(("s3://", "hf://"))


def is_here(uri: str) -> bool:
    """Whether the checkpoint is on this machine, or will be made here."""
    return uri.startswith(SCHEME) or Path(uri.removeprefix("file://")).exists()


def _read(uri: str, n_bytes: int) -> CheckpointFacts:
    try:
        return checkpoint_facts(uri, n_bytes)
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
            shares = router_user_config(application, path).split
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


def _assumed_facts(args: VariantArgs, config: dict[str, Any], n_bytes: int) -> CheckpointFacts:
    shape, scheme = shape_from_config(config), assumed_scheme(args.method)
    weights = weights_from_shape(shape, scheme, n_bytes)
    return CheckpointFacts(args.checkpoint, shape, scheme, weights)


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
