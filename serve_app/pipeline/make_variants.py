"""Make the variants of a stage: in the reference model's cache, or in the run's own folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.domain.errors import BuildError
from serve_app.pipeline.findings import MadeVariant
from serve_app.pipeline.pipeline_file import PipelineFile
from serve_app.pipeline.schema import variant_of
from serve_app.quantize.gate import Candidate, Gate, GateResult, Judged
from serve_app.quantize.judging import stored_result
from serve_app.quantize.making import Report
from serve_app.quantize.publish import publish, work_key
from serve_app.quantize.recipes import Recipe
from serve_app.quantize.runner import run_job
from serve_app.quantize.support import runs_here
from serve_app.reference.build import build, weights_bytes
from serve_app.reference.locate import QUANTIZE_JSON, TWIN_SUFFIX
from serve_app.store.manifest import CARD_MD, read_manifest, write_whole


@dataclass(frozen=True)
class _Place:
    """Where a variant is, and what the gate found of it."""

    folder: Path
    twin: Path | None
    result: GateResult


class _Hearing:
    """A gate that remembers which variants it judged to be wrong, and where they are."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.wrong: dict[str, _Place] = {}

    def __call__(self, variants: Mapping[str, Candidate], judged: Judged) -> None:
        def heard(name: str, result: GateResult) -> None:
            if not result.passed:
                of = variants[name]
                self.wrong[name] = _Place(of.folder, of.twin, result)
            judged(name, result)

        self._gate(variants, heard)


def make_variants(
    file: PipelineFile, names: Sequence[str], models: Path, gate: Gate, report: Report
) -> tuple[MadeVariant, ...]:
    """The variants of recipes `names`, made or found, each with its gate's verdict.

    Where one loads and is wrong, those that are wrong are returned, `passed` False. Raises
    BuildError where one could not be made or judged at all.
    """
    recipes = [file.recipes[variant_of(name)] for name in names]
    hearing = _Hearing(gate)
    try:
        if file.is_reference:
            built = build(recipes, run_job, hearing, needs_twin=_needs_twin, report=report)
            places = {each.variant: _Place(each.folder, each.twin, each.gate) for each in built}
        else:
            places = {each.name: _publish(file, each, models, hearing, report) for each in recipes}
    except BuildError:
        if not hearing.wrong:
            raise
        places = hearing.wrong
    return tuple(_made(each, places[each.name]) for each in recipes if each.name in places)


def _needs_twin(recipe: Recipe) -> bool:
    return not runs_here(recipe)


def _publish(
    file: PipelineFile, recipe: Recipe, models: Path, gate: Gate, report: Report
) -> _Place:
    """In `models/<variant>`; one that an earlier, interrupted stage published is not made again."""
    folder, key = models / recipe.name, models / f"{recipe.name}.key"
    twin = folder.with_name(folder.name + TWIN_SUFFIX) if _needs_twin(recipe) else None
    models.mkdir(parents=True, exist_ok=True)
    expected = work_key(recipe, file.base, None)
    if key.is_file() and key.read_text() == expected and folder.is_dir():
        result = stored_result(Candidate(recipe, folder, twin))
        if result is not None and result.passed:
            return _Place(folder, twin, result)
    key.unlink(missing_ok=True)
    made = publish(
        recipe,
        file.base,
        folder,
        gate=gate,
        needs_twin=twin is not None,
        force=folder.exists(),
        report=report,
    )
    write_whole(key, expected)
    return _Place(made.folder, made.twin, made.gate)


def _made(recipe: Recipe, at: _Place) -> MadeVariant:
    manifest = read_manifest(at.folder)
    if manifest is None:
        raise BuildError(f"{at.folder} has no manifest.json: make it again")
    record = json.loads((at.folder / QUANTIZE_JSON).read_text(encoding="utf-8"))
    card = at.folder / CARD_MD
    failures = f"; {'; '.join(at.result.failures)}" if at.result.failures else ""
    return MadeVariant(
        name=recipe.name,
        method=str(recipe.method),
        scheme=recipe.scheme.describe(),
        folder=str(at.folder.resolve()),
        served=str((at.twin or at.folder).resolve()),
        weights_bytes=weights_bytes(at.folder),
        manifest_sha256=manifest.digest(),
        passed=at.result.passed,
        gate=at.result.describe() + failures,
        card=str(card.resolve()) if card.is_file() else None,
        wall_s=record.get("wall_seconds"),
    )
