"""Tools of a pipeline without an engine: they write plausible evidence, and record what was asked.

`Script` says what comes out. `FakeTools` takes milliseconds; `RichTools` leaves checkpoints, load
runs and recommendations as the real ones do, for the report.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import msgspec

from loadtests.campaign import Campaign
from loadtests.report.result import read_result
from loadtests.report.write import write_report
from serve_app.domain.quality import (
    Estimate,
    Likelihood,
    Power,
    Provenance,
    QualityBar,
    QualityReport,
    Scoring,
    SetQuality,
    VariantQuality,
    encode_report,
)
from serve_app.domain.verdict import Verdict
from serve_app.evaluate.settings import Settings
from serve_app.pipeline.findings import LatencyRatio, Load, LoadRow, MadeVariant, Recommended, Split
from serve_app.pipeline.measured import load_of, recommended_of
from serve_app.pipeline.pipeline_file import PipelineFile
from serve_app.pipeline.recommendation import recommendation
from serve_app.pipeline.schema import Recommend, StagedSplit, variant_of
from serve_app.pipeline.split_check import Answer, check_split
from serve_app.recommend.report import write_report as write_recommendation
from serve_app.reference.build import CHECKPOINT
from serve_app.routing.split import assign
from serve_app.store.manifest import write_manifest
from tests.fakes import run_folders
from tests.fakes.checkpoints import (
    CT_W4,
    CT_W4_ASYM,
    CT_W8A8,
    INT8,
    PACKED,
    PLAIN,
    write_checkpoint,
)
from tests.fakes.run_folders import write_run

BYTES = {"baseline": 1000, "int8": 600, "gptq": 400, "awq": 410}
CONFIG = json.loads((CHECKPOINT / "config.json").read_bytes())
CHECKPOINTS = {
    "baseline": (PLAIN, None),
    "int8": (INT8, CT_W8A8),
    "gptq": (PACKED, CT_W4),
    "awq": (PACKED, CT_W4_ASYM),
}
SPEED = {"baseline": 1.0, "int8": 1.1, "gptq": 0.9, "awq": 0.95}


@dataclass
class Script:
    """What the tools find."""

    wrong: frozenset[str] = frozenset()
    """Variants that the correctness gate refuses."""
    quality: dict[str, Verdict] = field(default_factory=dict)
    """Of variants; the others pass."""
    why: str = "as scripted"
    """The reason of these verdicts."""
    misrouted: int = 0
    speed: dict[str, float] = field(default_factory=lambda: dict(SPEED))
    raises: dict[str, BaseException] = field(default_factory=dict)
    """By tool (`make`, `staged`, `split`, `evaluate`, `load`, `recommend`)."""
    before: Callable[[str], None] = lambda tool: None
    """Told each tool before it is used."""


class FakeTools:
    """`serve_app.pipeline.tools.Tools`. `asked` is what was asked, in order."""

    def __init__(self, models: Path, script: Script | None = None) -> None:
        self.script = script or Script()
        self.asked: list[tuple[str, object]] = []
        self.answered: list[set[str]] = []
        """Whose answers were there already, by evaluation."""
        self._models = models

    def make(
        self, file: PipelineFile, recipes: Sequence[str], models: Path
    ) -> tuple[MadeVariant, ...]:
        names = [variant_of(name) for name in recipes]
        self._ask("make", tuple(names))
        return tuple(self._made(file, name) for name in names)

    @contextmanager
    def staged(self, config: Path, log: Path, ready_timeout_s: float) -> Iterator[str]:
        self._ask("staged", config.parent.name)
        log.write_text("ready\n")
        yield "http://fake"
        self.asked.append(("ended", config.parent.name))

    def split(
        self, base_url: str, model: str, asked: StagedSplit, shares_bp: Mapping[str, int]
    ) -> Split:
        self._ask("split", dict(shares_bp))
        left = [self.script.misrouted]

        def answer(session: str, prompt: str) -> Answer:
            owner = assign(session, shares_bp)
            if left[0]:
                left[0] -= 1
                other = next(name for name in shares_bp if name != owner)
                return Answer(session, other, "fallback")
            return Answer(session, owner, "sticky")

        return check_split(answer, shares_bp, asked.requests, ["q"])

    def evaluate(
        self, settings: Settings, model: str, variants: Sequence[str], out: Path
    ) -> QualityReport:
        self._ask("evaluate", tuple(variants))
        report = quality_report(model, variants, self.script.quality, self.script.why)
        self.answered.append({each.name for each in out.glob("raw/*")})
        for name in variants:
            (out / "raw" / name).mkdir(parents=True, exist_ok=True)
        (out / "quality.json").write_bytes(encode_report(report))
        return report

    def load(self, campaign: Campaign, out: Path, columns: Mapping[str, Mapping[str, str]]) -> Load:
        self._ask("load", campaign.variant_names())
        out.mkdir()
        (out / "records.jsonl").write_text("{}\n")
        return load_findings(campaign, self.script.speed)

    def recommend(
        self, asked: Recommend, run: Path, quality: Path, config: Path, out: Path
    ) -> Recommended:
        self._ask("recommend", run.parent.name)
        assert quality.is_file() and config.is_file() and run.is_dir()
        out.mkdir()
        (out / "recommendation.json").write_text("{}\n")
        return Recommended(
            verdict=Verdict.PASS, answer="Serve gptq", chosen="gptq",
            sentences=("It is small.", "It is fast."), next_steps=(),
        )  # fmt: skip

    def _ask(self, tool: str, what: object) -> None:
        self.script.before(tool)
        self.asked.append((tool, what))
        if tool in self.script.raises:
            raise self.script.raises.pop(tool)

    def _write_weights(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"w" * BYTES[name])

    def _made(self, file: PipelineFile, name: str) -> MadeVariant:
        folder = self._models / name
        self._write_weights(folder, name)
        (folder / "README.md").write_text(f"# {name}\n")
        recipe = file.recipes[name]
        passed = name not in self.script.wrong
        return MadeVariant(
            name=name, method=str(recipe.method), scheme=recipe.scheme.describe(),
            folder=str(folder), served=str(folder), weights_bytes=BYTES[name],
            manifest_sha256=write_manifest(folder).digest(), passed=passed,
            gate="|dlogprob| engine 0.0010" + ("" if passed else "; differs by 0.9 nats"),
            card=str(folder / "README.md"), wall_s=1.0,
        )  # fmt: skip


class RichTools(FakeTools):
    """With files that everything which reads evidence can read."""

    def load(self, campaign: Campaign, out: Path, columns: Mapping[str, Mapping[str, str]]) -> Load:
        self._ask("load", campaign.variant_names())
        plan = campaign.model_dump(mode="json")
        with mock.patch.dict(run_folders.SPEED, self.script.speed, clear=True):
            write_run(out, plan)
        write_report(out)
        return load_of(read_result(out))

    def recommend(
        self, asked: Recommend, run: Path, quality: Path, config: Path, out: Path
    ) -> Recommended:
        self._ask("recommend", run.parent.name)
        report = recommendation(asked, run, quality, config)
        write_recommendation(report, out)
        return recommended_of(report)

    def _write_weights(self, folder: Path, name: str) -> None:
        tensors, quantization = CHECKPOINTS[name]
        write_checkpoint(folder, tensors, quantization, **CONFIG)


def load_findings(campaign: Campaign, speed: Mapping[str, float]) -> Load:
    """A gated stage and a closed loop; a variant as slow as 10 misses the SLO."""
    names = campaign.variant_names()
    verdicts = {name: Verdict.FAIL if speed[name] >= 10 else Verdict.PASS for name in names}
    rows = [
        LoadRow(
            stage="steady", load="8/s", concurrency=None, is_gated=True, variant=name,
            n_planned=480, n_ok=480, is_valid=True, reason="as scripted", slo=verdicts[name],
            output_tokens_per_s=100.0, p95=f"{100 * speed[name]:.0f}", p99="150", has_tail=True,
        )
        for name in names
    ]  # fmt: skip
    rows += [
        msgspec.structs.replace(row, stage="batch-8", load="8 in flight", concurrency=8,
                                is_gated=False, slo=None)
        for row in rows
    ]  # fmt: skip
    ratios = [
        LatencyRatio(
            stage="steady", variant=name, latency="e2e-p95", ratio=speed[name],
            low=speed[name] * 0.9, high=speed[name] * 1.1, reason="by paired blocks",
        )
        for name in names[1:]
    ]  # fmt: skip
    failed = [name for name in names if verdicts[name] is Verdict.FAIL]
    return Load(
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        reason="",
        rows=tuple(rows),
        ratios=tuple(ratios),
    )


def quality_report(
    model: str, variants: Sequence[str], verdicts: Mapping[str, Verdict], why: str = ""
) -> QualityReport:
    """A whole report; each variant loses 0.1 % of the score, known to a tenth of that."""
    baseline, *_ = variants

    def judged(name: str) -> VariantQuality:
        loss = 0.0 if name == baseline else 0.001
        asked = SetQuality(
            name="facts", scoring=Scoring.GREEDY, n=1000, n_failed=0,
            accuracy=Estimate(value=0.9), power=Power.INFORMATIVE, decides=True,
        )  # fmt: skip
        return VariantQuality(
            name=name,
            model=f"{model}@{name}",
            verdict=verdicts.get(name, Verdict.PASS),
            reason=why if name in verdicts else "",
            score=Estimate(value=0.9 * (1 - loss)),
            loss=Estimate(value=loss, low=loss - 0.0001, high=loss + 0.0001),
            sets=(asked,),
            likelihood=Likelihood(
                n_tokens=10, n_windows=1, perplexity=Estimate(value=3.0), bits_per_byte=None
            ),
        )

    return QualityReport(
        model=model, baseline=baseline, bar=QualityBar(), is_partial=False,
        variants=tuple(map(judged, variants)),
        provenance=Provenance(
            base_url="http://fake", created_at="2026-11-28T12:00:00+00:00", versions={},
            engines={}, sets=(), windows_digest=None, window_tokens=256, top_k=20, seed=0,
            n_resamples=100, concurrency={},
        ),
    )  # fmt: skip
