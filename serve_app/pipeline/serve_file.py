"""The Serve config file of a stage: the variants at hand behind one router, as plain data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from serve_app.config.calibration import calibrations
from serve_app.config.gpus import load_gpus
from serve_app.config.serve_content import serve_content, variant_application
from serve_app.config.serve_file import check_serve_file
from serve_app.domain.errors import PlanError
from serve_app.domain.units import BP_TOTAL
from serve_app.fleet.export import planned_numbers
from serve_app.fleet.plan import plan_fleet
from serve_app.fleet.read import read_fleet
from serve_app.fleet.summary import misfit
from serve_app.fleet.write import write_planned
from serve_app.pipeline.findings import MadeVariant
from serve_app.pipeline.pipeline_file import PipelineFile, engine_of

HEAD = "# Written by `quantile pipeline`: the variants as it staged them. `serve run` takes it.\n"


def equal_shares(names: Sequence[str]) -> dict[str, int]:
    """Basis points as equal as they can be; the first ones have one more."""
    each, rest = divmod(BP_TOTAL, len(names))
    return {name: each + (i < rest) for i, name in enumerate(names)}


def serve_config(
    file: PipelineFile, variants: Sequence[MadeVariant], shares_bp: Mapping[str, int]
) -> dict[str, Any]:
    """A Ray Serve config as `configs/local.yaml` is one. `variants`: the baseline first."""
    user_config = {"split": dict(shares_bp), "fallback": [each.name for each in variants]}
    applications = [_application(file, each) for each in variants]
    return serve_content(file.pipeline.port, file.pipeline.model, user_config, applications)


def write_serve_file(
    path: Path,
    file: PipelineFile,
    variants: Sequence[MadeVariant],
    shares_bp: Mapping[str, int] | None,
) -> Mapping[str, int]:
    """Write it, with the planned share of its GPU for each variant; the shares that it serves.

    Raises ConfigError, and PlanError where a variant does not fit the GPU.
    """
    shares = shares_bp or equal_shares([each.name for each in variants])
    text = yaml.safe_dump(serve_config(file, variants, shares), sort_keys=False)
    path.write_text(HEAD + text, encoding="utf-8")
    check_serve_file(path)
    if file.pipeline.gpu is not None:
        _plan(path)
    return shares


def _plan(path: Path) -> None:
    """What `quantile plan --write` does."""
    fleet = plan_fleet(read_fleet(path).variants, load_gpus(), {}, calibrations=calibrations())
    if problem := misfit(fleet):
        raise PlanError(problem)
    write_planned(path, planned_numbers(fleet))
    check_serve_file(path)


def _application(file: PipelineFile, made: MadeVariant) -> dict[str, Any]:
    recipe = file.recipes[made.name]
    engine = engine_of(file.pipeline, recipe, as_twin=made.is_twin)
    args: dict[str, Any] = {
        "model": file.pipeline.model,
        "name": made.name,
        "checkpoint": made.served,
        "method": made.method,
        "engine": engine.model_dump(mode="json", exclude_unset=True),
    }
    if file.pipeline.gpu is not None:
        args["gpu"] = file.pipeline.gpu.model_dump(mode="json", exclude_unset=True)
    return variant_application(args)
