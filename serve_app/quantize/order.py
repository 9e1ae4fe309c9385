"""What the quantizers' process is told to do, and what it says of it: JSON, over a pipe."""

from pathlib import Path
from typing import Literal

from serve_app.config.strict import StrictModel
from serve_app.quantize.recipes import Recipe


class Item(StrictModel):
    """One variant to make in the empty folder `out`, and its dequantized twin if one is wanted."""

    recipe: Recipe
    out: Path
    twin: Path | None = None


class Order(StrictModel):
    """Variants to make of the checkpoint folder `base`, one after another."""

    base: Path
    items: tuple[Item, ...]
    calibration_file: Path | None = None
    """JSONL of the user's; None for the reference corpus."""


class Event(StrictModel):
    """One line of the job's standard output."""

    variant: str
    state: Literal["quantizing", "measuring", "made", "failed"]
    detail: str = ""
