"""The variant that is no variant: the base's weights as they are."""

import shutil
from pathlib import Path

from serve_app.quantize.recipes import Recipe


def make(recipe: Recipe, base: Path, out: Path, calibration_rows: list[list[int]]) -> None:
    """Copy weights, their index and config.json into `out`."""
    for path in [*base.glob("*.safetensors"), *base.glob("*.safetensors.index.json")]:
        shutil.copy2(path, out)
    shutil.copy2(base / "config.json", out)
