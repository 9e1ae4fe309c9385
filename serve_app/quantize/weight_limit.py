"""Whether a variant's weights are the base's, rounded: a limit on the error of every layer.

The gate's reference is computed from the weights as they were written, so it agrees with a maker
that wrote wrong ones: two layers exchanged, scales or zero points of another layer. Their distance
from the base's weights does not. `quantile.json` has it (`weight_error`), measured by the job on
what the container gives back.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.domain.errors import BuildError
from serve_app.quantize.recipes import Tolerance
from serve_app.reference.locate import QUANTIZE_JSON

LAYERS_NAMED = 3


@dataclass(frozen=True)
class Weighed:
    """The layer with the largest error and that error, None where no layer differs from the
    base's; `failures` says of each limit that is exceeded what was needed."""

    layer: str | None
    relative: float | None
    failures: tuple[str, ...]


def weigh(tolerance: Tolerance, layers: Sequence[Mapping[str, Any]]) -> Weighed:
    """Hold each layer that differs from the base's against the limit of its kind.

    `layers` as `WeightErrors.as_json` gives them: `name`, `kind`, and `relative`, which is
    ||W - Wq|| / ||W||, and None where W is all zeros and Wq is not: that fails.
    """
    over = []
    for each in layers:
        need = tolerance.weight_limit(each["kind"])
        if each["relative"] is None or not each["relative"] <= need:
            over.append((each, need))
    over.sort(key=lambda found: -_size(found[0]))
    failures = [
        f"weights of {each['name']} differ from the base's by {_size(each):.4f} of their norm: "
        f"need <= {need} (gate.weights)"
        for each, need in over[:LAYERS_NAMED]
    ]
    if len(over) > LAYERS_NAMED:
        failures.append(f"so do {len(over) - LAYERS_NAMED} more layers")
    worst = max(layers, key=_size, default=None)
    if worst is None:
        return Weighed(None, None, ())
    return Weighed(worst["name"], worst["relative"], tuple(failures))


def recorded_layers(folder: Path) -> list[dict[str, Any]]:
    """The layers that the job found to differ from the base's. Raises `BuildError`."""
    path = folder / QUANTIZE_JSON
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))["weight_error"]["layers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(
            f"cannot read each layer's weight error from {path} ({error!r}): need the record of "
            "the quantization job; make the variant again"
        ) from None
    assert isinstance(layers, list)
    return layers


def _size(layer: Mapping[str, Any]) -> float:
    relative = layer["relative"]
    return float("inf") if relative is None else float(relative)
