"""The recommendation of a pipeline, from the files of one validation."""

from pathlib import Path

from serve_app.advise.candidates import Terms
from serve_app.pipeline.schema import Recommend
from serve_app.recommend.cli import make_report, sources_of
from serve_app.recommend.gather import Inputs, gather
from serve_app.recommend.report import Report


def recommendation(asked: Recommend, run: Path, quality: Path, config: Path) -> Report:
    """The recommendation on the evidence in these files; the same files give the same one."""
    inputs = Inputs(
        (run,),
        quality,
        config,
        gpu=asked.gpu,
        usd_per_hour=asked.usd_per_hour,
        latency=asked.latency,
        quality_margin=asked.quality_bar,
    )
    found = gather(inputs)
    levels = found.evidence.levels
    gated = [level.name for level in levels if level.is_gated]
    terms = Terms(
        asked.goal,
        tuple(gated or (level.name for level in levels)),
        asked.quality_bar,
        asked.memory_bytes,
        asked.gpus,
    )
    return make_report(found, terms, asked.gpu, asked.gpus, sources_of(inputs))
