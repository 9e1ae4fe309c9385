"""`quantile eval` on real engines, through the router: a short look at two of the four variants."""

import datetime

import pytest

from serve_app.domain.quality import Power, decode_report
from serve_app.domain.verdict import Verdict
from serve_app.evaluate.endpoint import open_endpoint
from serve_app.evaluate.run import Wanted, evaluate_endpoint
from serve_app.evaluate.settings import Settings, Sizes
from serve_app.evaluate.tasks.bundled import bundled_set

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
SIZES = Sizes(items_per_set=None, windows=12, answers=30, texts=3)
NAMES = ("guides", "facts", "extraction")


async def test_a_look_at_two_variants(serve, tmp_path):
    settings = Settings(
        base_url=f"{serve.base_url}/v1",
        sets=tuple(bundled_set(name).sample(60) for name in NAMES),
        sizes=SIZES,
        n_resamples=1000,
    )
    report = await evaluate_endpoint(
        open_endpoint(settings.base_url, "none", 60),
        settings,
        Wanted(variants=("bf16", "gptq")),
        tmp_path,
        lambda *_: None,
        lambda: datetime.datetime.now(datetime.UTC),
    )
    assert decode_report((tmp_path / "quality.json").read_bytes(), "q") == report
    gptq, floor = report["gptq"], report.noise_floor
    assert gptq.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE), gptq.reason
    assert all(each.n_failed == 0 for each in gptq.sets)
    guides = next(each for each in gptq.sets if each.name == "guides")
    assert guides.accuracy.value == 1.0
    extraction = next(each for each in gptq.sets if each.name == "extraction")
    assert extraction.power is Power.FLOOR  # the reference model was never trained on it
    found = gptq.likelihood
    assert found.n_tokens == 12 * 255
    assert 0.99 < found.perplexity_ratio.value < 1.02
    assert found.agreement.kl_mean.value > floor.likelihood.agreement.kl_mean.value
    assert found.excess.abs_delta_logprob.low > 0  # what really separates variants of this model
    assert found.agreement.top1_agreement.value > 0.9
    assert {text.to for text in gptq.texts} == {"baseline", "references"}
    assert report.provenance.engines["gptq"].startswith("vllm")
