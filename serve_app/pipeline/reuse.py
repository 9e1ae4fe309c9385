"""What an earlier stage asked of the same variants is not asked again."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from serve_app.evaluate.settings import NOISE_FLOOR, Settings
from serve_app.evaluate.store import RAW, TOKENS


def take_answers(
    names: Sequence[str],
    asked: Settings,
    earlier: Mapping[Path, tuple[Sequence[str], Settings]],
    out: Path,
) -> tuple[str, ...]:
    """Copy raw answers of `earlier` evaluations into `out`; returns whose.

    `earlier`: by folder, the variants and what they were asked. The first name is the baseline.
    Only answers to the same questions count, and the evaluation itself refuses those of another
    checkpoint or engine: they are in each file's header.
    """
    taken: dict[str, None] = {}
    for folder, (others, settings) in earlier.items():
        if replace(settings, bar=asked.bar) != asked:
            continue
        passes = [name for name in names if name in others]
        if others[0] == names[0]:
            passes += [NOISE_FLOOR, TOKENS]
        for name in passes:
            there, here = folder / RAW / name, out / RAW / name
            if there.is_dir() and not here.exists():
                shutil.copytree(there, here)
                taken[name] = None
    return tuple(name for name in taken if name not in (NOISE_FLOOR, TOKENS))
