"""The tools as they are: the functions behind `quantile quantize`, `eval`, `loadtest`, `recommend`,
and `serve run`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from loadtests.campaign import Campaign
from loadtests.records.manifest import EndReason
from loadtests.run import run_campaign
from serve_app.domain.quality import QualityReport
from serve_app.evaluate.settings import Settings
from serve_app.pipeline.evaluating import evaluate
from serve_app.pipeline.findings import Load, MadeVariant, Recommended, Split
from serve_app.pipeline.make_variants import make_variants
from serve_app.pipeline.measured import load_of, recommended_of
from serve_app.pipeline.pipeline_file import PipelineFile
from serve_app.pipeline.recommendation import recommendation
from serve_app.pipeline.schema import Recommend, StagedSplit, variant_of
from serve_app.pipeline.split_check import check_split, http_ask
from serve_app.quantize.gate import run_gate
from serve_app.quantize.progress import progress
from serve_app.recommend.report import write_report
from serve_app.reference.corpus import facts
from serve_app.serving.local_serve import LocalServe


class RealTools:
    """`serve_app.pipeline.tools.Tools`, on this machine."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def make(
        self, file: PipelineFile, recipes: Sequence[str], models: Path
    ) -> tuple[MadeVariant, ...]:
        """Made in the quantizers' environment, judged in a real engine."""
        with progress([variant_of(name) for name in recipes]) as report:
            return make_variants(file, recipes, models, run_gate, report)

    @contextmanager
    def staged(self, config: Path, log: Path, ready_timeout_s: float) -> Iterator[str]:
        """`serve run`, until the block ends."""
        serve = LocalServe(config, log=log, ready_timeout_s=ready_timeout_s)
        with self._console.status(f"starting Ray Serve and its engines (log: {log})"):
            serve.__enter__()
        try:
            yield serve.base_url
        finally:
            serve.stop()

    def split(
        self, base_url: str, model: str, asked: StagedSplit, shares_bp: Mapping[str, int]
    ) -> Split:
        """Questions of the reference corpus: what is answered does not matter here."""
        prompts = [fact.question for fact in facts() if fact.split == "seen"]
        ask = http_ask(base_url, model, asked.max_tokens)
        with self._console.status(f"sending {asked.requests} sessions through {model}"):
            return check_split(ask, shares_bp, asked.requests, prompts)

    def evaluate(
        self, settings: Settings, model: str, variants: Sequence[str], out: Path
    ) -> QualityReport:
        """`quantile eval`."""
        return evaluate(settings, model, variants, out, self._console)

    def load(self, campaign: Campaign, out: Path, columns: Mapping[str, Mapping[str, str]]) -> Load:
        """`quantile loadtest`."""
        result = run_campaign(campaign, out, console=self._console, columns=columns)
        if result.ending is not None and result.ending.reason is EndReason.INTERRUPTED:
            raise KeyboardInterrupt
        return load_of(result)

    def recommend(
        self, asked: Recommend, run: Path, quality: Path, config: Path, out: Path
    ) -> Recommended:
        """`quantile recommend`."""
        report = recommendation(asked, run, quality, config)
        write_report(report, out)
        return recommended_of(report)
