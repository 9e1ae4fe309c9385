"""Carry out one stage: what it finds is returned, its evidence lies in its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serve_app.domain.errors import ConfigError
from serve_app.domain.verdict import Verdict
from serve_app.evaluate.settings import Settings
from serve_app.pipeline.findings import Findings, Load, MadeVariant, Split
from serve_app.pipeline.measured import quality_of
from serve_app.pipeline.pipeline_file import PipelineFile
from serve_app.pipeline.reuse import take_answers
from serve_app.pipeline.schema import Make, Recommend, Stage, Trial, Validate
from serve_app.pipeline.serve_file import write_serve_file
from serve_app.pipeline.tools import Tools
from serve_app.store.manifest import write_whole

SERVE_YAML, SERVE_LOG = "serve.yaml", "serve.log"
CAMPAIGN, QUALITY, SPLIT_JSON = "campaign", "quality", "split.json"
QUALITY_JSON = "quality.json"
RECOMMENDATION = "recommendation"
MODELS = "models"


@dataclass(frozen=True)
class Site:
    """Where a stage is carried out, and with what."""

    file: PipelineFile
    out: Path
    """The run's folder."""
    tools: Tools
    folders: Mapping[str, Path]
    """Of each stage's evidence."""
    made: Mapping[str, MadeVariant]
    """The variants that stages before this one made."""
    is_anew: bool = False
    """Asked for again by name: nothing that was asked before counts."""


def carry_out(stage: Stage, site: Site) -> Findings:
    """Raises a QuantileError where the stage could not be carried out."""
    match stage:
        case Make():
            made = site.tools.make(site.file, stage.recipes, site.out / MODELS)
            _keep(site.folders[stage.name] / "made.json", made)
            return Findings(made=made)
        case Recommend():
            return _recommend(stage, site)
        case _:
            return _try(stage, site)


def _try(stage: Trial, site: Site) -> Findings:
    """Serve the variants once, and ask, evaluate and load what is then there."""
    folder, pipeline = site.folders[stage.name], site.file.pipeline
    names = pipeline.served_by(stage)
    if missing := [name for name in names if name not in site.made]:
        raise ConfigError(f"stage {stage.name} serves {', '.join(missing)}: not made yet")
    variants = [site.made[name] for name in names]
    asked = stage.split if isinstance(stage, Validate) else None
    shares = write_serve_file(
        folder / SERVE_YAML, site.file, variants, asked.shares_bp if asked else None
    )
    split, quality, load = None, None, None
    taken: tuple[str, ...] = ()
    log = folder / SERVE_LOG
    with site.tools.staged(folder / SERVE_YAML, log, pipeline.ready_timeout_s) as base_url:
        if asked is not None:
            split = site.tools.split(base_url, pipeline.model, asked, shares)
            _keep(folder / SPLIT_JSON, split)
        if isinstance(stage, Validate):
            settings = site.file.evaluations[stage.name]
            if not site.is_anew:
                earlier = _evaluated_before(stage, site)
                taken = take_answers(names, settings, earlier, folder / QUALITY)
            report = site.tools.evaluate(settings, pipeline.model, names, folder / QUALITY)
            quality = quality_of(report)
        if stage.campaign is not None and not _is_lost(split, quality):
            load = _load(stage, site, variants)
    return Findings(load=load, quality=quality, split=split, taken_over=taken)


def _evaluated_before(stage: Validate, site: Site) -> dict[Path, tuple[tuple[str, ...], Settings]]:
    """By folder: the variants of each validation before this one, and what they were asked."""
    stages = site.file.pipeline.stages
    return {
        site.folders[each.name] / QUALITY: (
            tuple(site.file.pipeline.served_by(each)),
            site.file.evaluations[each.name],
        )
        for each in stages[: stages.index(stage)]
        if isinstance(each, Validate)
    }


def _is_lost(split: Split | None, quality: object) -> bool:
    """Whether a gate failed already, so that load would only cost time."""
    if split is not None and (split.n_failed or split.n_misrouted):
        return True
    judged = quality if isinstance(quality, tuple) else ()
    return any(each.verdict in (Verdict.FAIL, Verdict.ERROR) for each in judged)


def _load(stage: Trial, site: Site, variants: list[MadeVariant]) -> Load:
    columns = {"bytes": {each.name: f"{each.weights_bytes:,}" for each in variants}}
    campaign = site.file.campaigns[stage.name]
    return site.tools.load(campaign, site.folders[stage.name] / CAMPAIGN, columns)


def _recommend(stage: Recommend, site: Site) -> Findings:
    evidence = site.file.pipeline.evidence_of(stage)
    if evidence is None:
        raise ConfigError(f"stage {stage.name}: no validation has a campaign")
    there, here = site.folders[evidence.name], site.folders[stage.name]
    recommended = site.tools.recommend(
        stage,
        there / CAMPAIGN,
        there / QUALITY / QUALITY_JSON,
        there / SERVE_YAML,
        here / RECOMMENDATION,
    )
    return Findings(recommended=recommended)


def _keep(path: Path, content: object) -> None:
    text = msgspec.json.format(msgspec.json.encode(content), indent=1).decode()
    write_whole(path, text + "\n")
