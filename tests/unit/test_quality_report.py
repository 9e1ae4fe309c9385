"""`quality.json` reads back as it was written, and refuses what it is not."""

import json

import pytest

from serve_app.domain.errors import ConfigError
from serve_app.domain.quality import (
    Estimate,
    Flips,
    Provenance,
    QualityBar,
    QualityReport,
    VariantQuality,
    decode_report,
    encode_report,
)
from serve_app.domain.verdict import Verdict

PROVENANCE = Provenance(
    base_url="http://x/v1",
    created_at="2026-11-28T00:00:00Z",
    versions={},
    engines={},
    sets=(),
    windows_digest=None,
    window_tokens=256,
    top_k=20,
    seed=0,
    n_resamples=10_000,
    concurrency={"tasks": 8},
)


def report(*names: str) -> QualityReport:
    variants = tuple(
        VariantQuality(
            name=name, model=f"m@{name}", verdict=Verdict.PASS, reason="", score=Estimate(value=0.5)
        )
        for name in names
    )
    return QualityReport(
        model="m",
        baseline="bf16",
        bar=QualityBar(),
        is_partial=False,
        variants=variants,
        provenance=PROVENANCE,
    )


def test_reads_back_what_it_wrote():
    written = report("bf16", "gptq")
    assert decode_report(encode_report(written), "q.json") == written
    assert written["gptq"].model == "m@gptq"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 99}, "have 99"),
        ({"baseline": "fp16"}, "'fp16' among them"),
        ({"colour": "red"}, "unknown field"),
    ],
)
def test_another_schema_or_shape_is_refused(change, says):
    raw = json.loads(encode_report(report("bf16", "gptq"))) | change
    with pytest.raises(ConfigError, match=says):
        decode_report(json.dumps(raw).encode(), "q.json")


def test_what_is_no_json_is_refused():
    with pytest.raises(ConfigError, match=r"q\.json is no quality report"):
        decode_report(b"<html>", "q.json")


def test_flips_of_nothing_are_unknown():
    none = Flips(
        both_right=0, right_to_wrong=0, wrong_to_right=0, both_wrong_same=0, both_wrong_different=0
    )
    assert none.share is None
