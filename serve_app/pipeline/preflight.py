"""What can be known to go wrong before anything expensive starts."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from serve_app.pipeline.carry_out import MODELS
from serve_app.pipeline.decide import Step
from serve_app.pipeline.pipeline_file import PipelineFile
from serve_app.pipeline.schema import Make, Measure, Validate, variant_of
from serve_app.quantize.preflight import check_job
from serve_app.quantize.runner import quantize_python
from serve_app.reference.locate import cache_dir
from serve_app.serving.local_serve import SERVE_ENV
from serve_app.serving.ports import require_alone, require_free


def check_ready(file: PipelineFile, left: Sequence[Step], out: Path, console: Console) -> None:
    """Raise a QuantileError where a stage that is left could not run; say what it will take."""
    stages = [step.stage for step in left]
    if any(isinstance(stage, Make) for stage in stages):
        quantize_python()
        models = cache_dir() / MODELS if file.is_reference else out / MODELS
        _check_jobs(file, [stage for stage in stages if isinstance(stage, Make)], models, console)
    trials = [stage for stage in stages if isinstance(stage, Measure | Validate)]
    if trials:
        require_free(file.pipeline.port, "set another `port` in the pipeline")
        require_alone({**SERVE_ENV, **os.environ})
    names = {stage.name for stage in trials}
    loads = [each for name, each in file.campaigns.items() if name in names]
    seconds = sum(each.planned_s(len(each.variant_names())) for each in loads)
    text = f"{len(stages)} stages to run: {', '.join(stage.name for stage in stages)}"
    text += f"; campaigns take {seconds / 60:.1f} minutes of it" if loads else ""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _check_jobs(file: PipelineFile, stages: Sequence[Make], models: Path, console: Console) -> None:
    for stage in stages:
        for name in map(variant_of, stage.recipes):
            for line in check_job(file.base, file.recipes[name], models / name):
                console.print(f"{name}: {line}", markup=False, highlight=False, soft_wrap=True)
