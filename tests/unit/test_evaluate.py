"""`quantile eval` against an endpoint whose figures are known by construction."""

import datetime
import json

import httpx
import numpy as np
import pytest

from serve_app.domain.errors import ConfigError, EngineError
from serve_app.domain.quality import Power, QualityBar, Scoring, decode_report
from serve_app.domain.verdict import Verdict
from serve_app.evaluate.prepare import cut_windows, passage
from serve_app.evaluate.run import Wanted, evaluate_endpoint, identity_of
from serve_app.evaluate.settings import NOISE_FLOOR, Settings, Sizes, plan_passes
from serve_app.evaluate.tasks.items import Item, TaskSet
from tests.fakes.judged_endpoint import JudgedEndpoint

ITEMS = tuple(
    Item(f"What is {i}?", f"answer {i}", (f"answer {i}", "no", "maybe"), group=f"g{i // 2}")
    for i in range(100)
)
KNOWN = TaskSet("known", "test", ITEMS)
UNKNOWN = TaskSet("unknown", "test", tuple(Item(f"Why {i}?", f"because {i}") for i in range(50)))
ANSWERS = {item.question: item.answer for item in ITEMS}
SIZES = Sizes(items_per_set=None, windows=24, answers=10, texts=4)
TEXT = "\n\n".join(f"{i} little words of a text that has {i * i} parts in it." for i in range(20))
BAR = QualityBar(margin=0.06)


def settings(**changes: object) -> Settings:
    given = {"base_url": "http://x/v1", "sets": (KNOWN, UNKNOWN), "sizes": SIZES}
    given |= {"window_tokens": 40, "n_resamples": 500, "bar": BAR, "text": TEXT}
    return Settings(**(given | changes))


def wrong_by(shares: dict[str, float]):
    """Each variant errs on its own share of the known items, and all on the same tenth."""

    def wrong(model: str, question: str) -> bool:
        if question not in ANSWERS:
            return False
        i = int(question.split()[-1].rstrip("?"))
        return i % 10 == 0 or i % 100 < 100 * shares.get(model, 0)

    return wrong


def fake(**shares: float) -> JudgedEndpoint:
    damage = {"bf16": 0.0, "int8": 0.02, "w4": 0.15}
    return JudgedEndpoint(damage, ANSWERS, wrong_by(shares))


async def run(server: JudgedEndpoint, out, **changes):
    return await evaluate_endpoint(
        server.endpoint(),
        settings(**changes),
        Wanted(),
        out,
        lambda *_: None,
        lambda: datetime.datetime(2026, 11, 28, tzinfo=datetime.UTC),
    )


async def test_everything_that_is_known_by_construction_is_found(tmp_path):
    server = fake(w4=0.3)
    report = await run(server, tmp_path)
    assert report.model == "m"
    assert [each.name for each in report.variants] == ["bf16", "int8", "w4"]
    base, int8, w4 = report.variants
    assert (base.verdict, base.loss.value) == (Verdict.PASS, 0.0)
    assert int8.verdict is Verdict.PASS
    assert w4.verdict is Verdict.FAIL
    assert w4.loss.low > 0.1
    assert "lost" in w4.reason

    small, large = int8.likelihood.agreement, w4.likelihood.agreement
    assert 0 < small.kl_mean.value < large.kl_mean.value
    assert small.abs_delta_logprob.value < large.abs_delta_logprob.value
    assert large.top1_agreement.value < 1
    floor = report.noise_floor
    assert floor.name == NOISE_FLOOR
    assert floor.likelihood.agreement.kl_mean.value == pytest.approx(0, abs=1e-9)
    assert floor.likelihood.perplexity_ratio.value == pytest.approx(1)
    assert w4.likelihood.excess.kl_mean.value == pytest.approx(large.kl_mean.value, abs=1e-9)
    assert base.likelihood.bits_per_byte.value == pytest.approx(
        np.log2(base.likelihood.perplexity.value), rel=0.02
    )  # one token is one byte


async def test_kl_is_a_lower_bound_close_to_the_truth(tmp_path):
    server = fake()
    report = await run(server, tmp_path)
    p, q = server.log_softmax("bf16"), server.log_softmax("w4")
    whole = (np.exp(p) * (p - q)).sum(axis=1)
    file = (tmp_path / "raw" / "tokens" / "text.jsonl").read_text().splitlines()[1:]
    stream = [
        t
        for line in sorted(file, key=lambda x: json.loads(x)["i"])
        for t in json.loads(line)["ids"]
    ]
    windows = cut_windows(stream, 40, 24)
    truth = np.mean([whole[token] for window in windows for token in window[:-1]])
    found = report["w4"].likelihood.agreement.kl_mean.value
    assert 0.3 * truth < found <= truth


async def test_a_floor_is_flagged_and_does_not_count(tmp_path):
    report = await run(fake(), tmp_path)
    greedy = {(s.name, s.scoring): s for s in report["bf16"].sets}
    unknown = greedy["unknown", Scoring.GREEDY]
    assert (unknown.power, unknown.decides) == (Power.FLOOR, False)
    assert greedy["known", Scoring.GREEDY].decides
    assert any("unknown (greedy): at its floor" in note for note in report.notes)
    assert report["bf16"].score.value == pytest.approx(0.9)


async def test_flips_of_both_directions_are_told_apart(tmp_path):
    report = await run(fake(bf16=0.05, w4=0.1), tmp_path)
    found = next(s for s in report["w4"].sets if s.decides)
    assert found.flips.right_to_wrong == 5
    assert found.flips.wrong_to_right == 0
    assert found.flips.both_wrong_same > 0
    assert found.excess_flips == pytest.approx(5 / 100)
    assert report.pair("w4", "bf16").gain.value != 0


async def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    server = fake()
    server.fails = lambda n: httpx.ConnectError("refused") if n > 500 else None
    with pytest.raises(EngineError, match="run the same command with the same --out"):
        await run(server, tmp_path, task_concurrency=1)
    partial = decode_report((tmp_path / "quality.json").read_bytes(), "q")
    assert partial.is_partial
    assert all(v.verdict is not Verdict.PASS for v in partial.variants)
    assert "PARTIAL" in (tmp_path / "quality.md").read_text()

    before = len([path for path, _ in server.requests if path == "/tokenize"])
    server.fails = lambda n: None
    asked = len(server.requests)
    report = await run(server, tmp_path, task_concurrency=1)
    assert not report.is_partial
    again = server.requests[asked:]
    fresh = fake()
    whole = await run(fresh, tmp_path / "whole", task_concurrency=1)
    assert len(again) < len(fresh.requests)
    assert len([p for p, _ in server.requests if p == "/tokenize"]) - before <= len(
        [p for p, _ in fresh.requests if p == "/tokenize"]
    )
    assert report.variants == whole.variants


async def test_a_torn_last_line_is_asked_again(tmp_path):
    await run(fake(), tmp_path)
    file = tmp_path / "raw" / "w4" / "known.greedy.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    server = fake()
    report = await run(server, tmp_path)
    assert server.requests == [("/v1/chat/completions", "w4")]
    assert next(s for s in report["w4"].sets if s.name == "known").n == 100


async def test_answers_to_another_question_are_not_taken(tmp_path):
    await run(fake(), tmp_path)
    other = TaskSet("known", "test", ITEMS[:60])
    with pytest.raises(ConfigError, match="another question"):
        await run(fake(), tmp_path, sets=(other, UNKNOWN))


async def test_answers_of_a_variant_made_anew_are_not_mixed_with_the_old(tmp_path):
    await run(fake(), tmp_path, sets=(KNOWN,))
    server = fake()
    server.facts["w4"] = {"engine": "fake 1", "checkpoint": "/models/w4-again"}
    with pytest.raises(ConfigError, match="another question"):
        await run(server, tmp_path, sets=(KNOWN,))


def test_a_variant_is_what_its_card_and_its_facts_say():
    card = {"id": "m@w4", "scheme": "w4a16", "weight_bytes": 7, "ready": True}
    status = {"variants": {"w4": {"facts": {"checkpoint": "/w4", "engine": "vllm 1", "seed": "0"}}}}
    assert identity_of(card, status) == {
        "scheme": "w4a16", "weight_bytes": 7, "checkpoint": "/w4", "engine": "vllm 1"
    }  # fmt: skip
    assert identity_of({"id": "gpt"}, {}) is None
    assert (
        identity_of({"id": "m@w4", "scheme": None}, {"variants": {"w4": {"facts": None}}}) is None
    )


async def test_without_prompt_logprobs_the_tasks_still_count(tmp_path):
    server = fake()
    server.no_logprobs = {"w4"}
    report = await run(server, tmp_path)
    assert report["w4"].likelihood is None
    assert "no prompt logprobs here" in report["w4"].likelihood_gap
    assert report["w4"].score is not None
    assert report["w4"].verdict is Verdict.INCONCLUSIVE
    assert "its perplexity is not known: " in report["w4"].reason
    assert report["int8"].verdict is Verdict.PASS
    assert report["int8"].likelihood is not None


async def test_requests_that_fail_are_broken_evidence(tmp_path):
    server = fake()
    refusal = httpx.Response(500, json={"error": {"message": "scripted"}})
    chat = "/v1/chat/completions"
    server.fails = lambda n: refusal if server.requests[-1] == (chat, "w4") and n % 5 == 0 else None
    report = await run(server, tmp_path, sets=(KNOWN,))
    assert report["w4"].verdict is Verdict.ERROR
    assert "got no answer" in report["w4"].reason
    assert report["int8"].verdict is Verdict.PASS


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_broken_baseline_judges_nothing(tmp_path, path):
    """Nothing may pass by what the baseline did not answer."""
    server = fake()
    refusal = httpx.Response(403, json={"error": {"message": "scripted"}})
    server.fails = lambda n: (
        refusal if server.requests[-1] == (path, "bf16") and n % 5 == 0 else None
    )
    report = await run(server, tmp_path, sets=(KNOWN,))
    assert [each.verdict for each in report.variants] == [Verdict.ERROR] * 3
    assert "got no answer" in report["bf16"].reason
    assert all("the baseline: " in report[name].reason for name in ("int8", "w4"))


@pytest.mark.parametrize("missing", ["windows", "choices"])
async def test_log_probabilities_that_fail_are_broken_evidence(tmp_path, missing):
    """A variant must not pass because what would have failed it got no answer."""
    server = fake()
    refusal = httpx.Response(403, json={"error": {"message": "scripted"}})
    seen = {"w4": 0}

    def fails(_: int) -> httpx.Response | None:
        if server.requests[-1] != ("/v1/completions", "w4"):
            return None
        seen["w4"] += 1
        is_window = seen["w4"] <= SIZES.windows
        return refusal if is_window is (missing == "windows") else None

    server.fails = fails
    report = await run(server, tmp_path)
    assert report["w4"].verdict is Verdict.ERROR
    assert "got no answer" in report["w4"].reason
    assert report["int8"].verdict is Verdict.PASS


async def test_only_a_route_that_is_missing_is_a_gap(tmp_path):
    server = fake()

    def answer(status: int) -> None:
        refusal = httpx.Response(status, json={"error": {"message": "scripted"}})
        server.fails = lambda _: refusal if server.requests[-1][0] == "/tokenize" else None

    answer(403)
    with pytest.raises(EngineError, match="texts of text were not tokenized"):
        await run(server, tmp_path)
    answer(404)
    report = await run(server, tmp_path / "without")
    assert any("does not tokenize" in note for note in report.notes)
    assert "by accuracy alone" in report["int8"].reason


async def test_reports_escape_what_models_say(tmp_path):
    server = fake()
    server.answers |= {ITEMS[1].question: "<script>alert(1)</script>"}
    await run(server, tmp_path)
    server = JudgedEndpoint({"bf16": 0.0, "w4": 0.1}, {"<b>": "x"})
    for name in ("quality.html", "outputs.html"):
        assert "<script" not in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    ("wanted", "says"),
    [({"variants": ("w2",)}, "no variant 'w2'"), ({"baseline": "fp16"}, "no variant 'fp16'"),
     ({"model": "other"}, "need a model 'other'")],
)  # fmt: skip
def test_names_that_are_not_served_are_refused(wanted, says):
    cards = {"m": {}, "m@bf16": {}, "m@w4": {}} if "model" not in wanted else {"m@bf16": {}}
    with pytest.raises(ConfigError, match=says):
        plan_passes(cards, settings(), **wanted)


def test_an_endpoint_without_pins_is_judged_by_its_models():
    model, passes = plan_passes({"a": {}, "b": {}}, settings())
    assert (model, [each.name for each in passes]) == ("a", ["a", NOISE_FLOOR, "b"])


def test_windows_and_passages():
    assert cut_windows(range(10), 4, None) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert cut_windows(range(3), 4, None) == ()
    assert passage([1, 2, 3], [1, 2, 3, 7, 8]).start == 3
    assert passage([1, 2, 9], [1, 2, 3, 7]).start == 2
