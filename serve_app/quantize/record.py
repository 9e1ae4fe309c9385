"""`quantile.json`: what a variant is and how it was made, beside its weights."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from serve_app.config.parse import parse, read_yaml
from serve_app.quantize.calibration import Source, rows_digest
from serve_app.quantize.pins import QUANTIZERS
from serve_app.quantize.recipes import Recipe
from serve_app.quantize.weight_error import WeightErrors
from serve_app.reference.locate import QUANTIZE_JSON
from serve_app.reference.logprobs import REFERENCE_NPZ

SCHEMA_VERSION = 2
REFERENCE = Path(__file__).parents[1].resolve() / "reference" / "checkpoint"


def write_record(
    path: Path,
    recipe: Recipe,
    base: Path,
    *,
    calibration: tuple[Source, Sequence[Sequence[int]]] | None,
    errors: WeightErrors,
    in_flight: bool,
    wall_s: float,
) -> None:
    """Write the record of a variant that was made of `base` in `wall_s` seconds."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "variant": recipe.name,
        "summary": recipe.summary,
        "method": recipe.method,
        "scheme": asdict(recipe.scheme),
        "engine": recipe.engine.model_dump(),
        "recipe": recipe.model_dump(mode="json", exclude={"name"}),
        "recipe_sha256": recipe.digest(),
        "base": "quantile-reference" if base.resolve() == REFERENCE else base.resolve().name,
        "calibration": _calibration(recipe, *calibration) if calibration else None,
        "reference": {
            "file": REFERENCE_NPZ,
            "dtype": "float32",
            "weights": "dequantized" if recipe.make.tool != "copy" else "as stored",
            "activations": "quantized as the scheme says" if in_flight else "float32",
        },
        "weight_error": errors.as_json(),
        "libraries": {name: version(name) for name in QUANTIZERS},
        "wall_seconds": round(wall_s, 2),
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def recorded_recipe(folder: Path) -> Recipe:
    """The recipe that made the variant in `folder`. Raises `ConfigError`."""
    values = read_yaml(folder / QUANTIZE_JSON)  # JSON is YAML
    return parse(
        Recipe, {**values["recipe"], "name": values["variant"]}, where=str(folder / QUANTIZE_JSON)
    )


def _calibration(
    recipe: Recipe, source: Source, rows: Sequence[Sequence[int]]
) -> dict[str, object]:
    return {
        "source": source.name,
        "source_sha256": source.sha256,
        "samples": len(rows),
        "length_tokens": recipe.calibration.length_tokens,
        "tokens_sha256": rows_digest(rows),
    }
