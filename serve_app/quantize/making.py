"""Make variants into folders that appear whole: by rename, with a manifest, or not at all."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.domain.errors import BuildError
from serve_app.quantize.order import Event, Item
from serve_app.quantize.recipes import Recipe
from serve_app.reference.locate import QUANTIZE_JSON
from serve_app.store.manifest import write_manifest

UNFINISHED = ".making-"

Quantize = Callable[[Path, Sequence[Item], Callable[[Event], None]], None]
"""Make items of a base folder, telling how it goes: `serve_app.quantize.runner.run_job`."""

Report = Callable[[str, str], None]
"""Told (variant, what happens to it now)."""


@dataclass(frozen=True)
class Wanted:
    """A variant and the folder it is to appear as; `twin`: the same for its dense twin, or None."""

    recipe: Recipe
    folder: Path
    twin: Path | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """All that has to appear."""
        return (self.folder, self.twin) if self.twin else (self.folder,)

    @property
    def is_made(self) -> bool:
        """Whether nothing is left to make."""
        return all((folder / QUANTIZE_JSON).is_file() for folder in self.folders)


def make_all(
    wanted: Sequence[Wanted], base: Path, quantize: Quantize, report: Report
) -> dict[str, str]:
    """Make every variant anew; each appears as soon as it is whole.

    Returns the faults by variant: what could not be made, and why. Only folders of one file system
    are renamed: the work is done beside the folder that is to appear.
    """
    faults: dict[str, str] = {}
    scratch = {each.recipe.name: [_fresh(folder) for folder in each.folders] for each in wanted}
    by_name = {each.recipe.name: each for each in wanted}

    def heard(event: Event) -> None:
        if event.state == "made":
            try:
                _appear(scratch[event.variant], by_name[event.variant])
            except BuildError as error:
                event = event.model_copy(update={"state": "failed", "detail": str(error)})
        if event.state == "failed":
            faults[event.variant] = event.detail
        if event.state != "made":
            report(event.variant, f"{event.state} {event.detail}" if event.detail else event.state)

    items = [
        Item(recipe=each.recipe, out=folders[0], twin=folders[1] if each.twin else None)
        for each, folders in zip(wanted, scratch.values(), strict=True)
    ]
    try:
        if items:
            quantize(base, items, heard)
    finally:
        for folder in (folder for folders in scratch.values() for folder in folders):
            shutil.rmtree(folder, ignore_errors=True)
    return faults


def _fresh(folder: Path) -> Path:
    """A new name each time: a job that outlived a killed build cannot write into this one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))


def _appear(scratch: Sequence[Path], wanted: Wanted) -> None:
    """Rename what was made into place, the variant itself last: with it, all of it is there."""
    for made in scratch:
        if not (made / QUANTIZE_JSON).is_file():
            name = wanted.recipe.name
            raise BuildError(f"the job for {name!r} ended without writing {QUANTIZE_JSON}")
        write_manifest(made)
        made.chmod(0o755)  # mkdtemp gives 0700
    for made, folder in reversed(list(zip(scratch, wanted.folders, strict=True))):
        if folder.exists():
            replaced = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
            folder.rename(replaced / "old")
            made.rename(folder)
            shutil.rmtree(replaced)
        else:
            made.rename(folder)
