"""Gates and the production checklist, from findings made by hand."""

import msgspec
import pytest
from pydantic import TypeAdapter

from serve_app.domain.quality import Estimate
from serve_app.domain.verdict import Verdict
from serve_app.pipeline.checklist import Done, Evidence, StageEvidence, checklist
from serve_app.pipeline.findings import (
    Findings,
    JudgedVariant,
    LatencyRatio,
    Load,
    LoadRow,
    MadeVariant,
    Recommended,
)
from serve_app.pipeline.gates import gravest, judge
from serve_app.pipeline.schema import Stage
from serve_app.pipeline.split_check import Answer, judge_answers
from serve_app.routing.split import assign

SHARES = {"baseline": 5000, "int8": 5000}
NAMES = ("baseline", "int8")


def made(name, n_bytes, **changes):
    return MadeVariant(
        **{
            "name": name, "method": "gptq", "scheme": "s", "folder": f"/m/{name}",
            "served": f"/m/{name}", "weights_bytes": n_bytes, "manifest_sha256": "ab",
            "passed": True, "gate": "engine 0.001", "card": f"/m/{name}/README.md",
        } | changes
    )  # fmt: skip


def row(name, **changes):
    return LoadRow(
        **{
            "stage": "steady", "load": "8/s", "concurrency": None, "is_gated": True,
            "variant": name, "n_planned": 300, "n_ok": 300, "is_valid": True, "reason": "",
            "slo": Verdict.PASS, "output_tokens_per_s": 120.0, "p95": "60 [50, 70]",
            "p99": "80 [70, …]", "has_tail": True,
        } | changes
    )  # fmt: skip


def batch(name, concurrency, **changes):
    return row(name, stage=f"batch-{concurrency}", concurrency=concurrency, is_gated=False,
               slo=None, **changes)  # fmt: skip


def judged(name, verdict=Verdict.PASS, **changes):
    return JudgedVariant(
        name=name, verdict=verdict, reason="why" if verdict is not Verdict.PASS else "",
        n_items=1000, score=Estimate(value=0.9), loss=Estimate(value=0.001, low=0.0, high=0.002),
        **changes,
    )  # fmt: skip


def load(*rows, verdict=Verdict.PASS, ratios=()):
    return Load(verdict=verdict, reason="", rows=rows, ratios=tuple(ratios))


def ratio(value, low, high):
    return LatencyRatio(stage="steady", variant="int8", latency="e2e-p95", ratio=value, low=low,
                        high=high, reason="")  # fmt: skip


def split(*, failed=0, strays=0, n=200):
    answers = []
    for i in range(n):
        session = f"s{i}"
        owner = assign(session, SHARES)
        if i < failed:
            answers.append(Answer(session, None, None, "HTTP 503"))
        elif i < failed + strays:
            other = "int8" if owner == "baseline" else "baseline"
            answers.append(Answer(session, other, "fallback"))
        else:
            answers.append(Answer(session, owner, "sticky"))
    return judge_answers(answers, SHARES)


def stage(**content):
    return TypeAdapter(Stage).validate_python({"name": "s", **content})


MAKE = stage(do="make", recipes=["int8"], gates={"max_weights_ratio": 0.7})
MEASURE = stage(do="measure", campaign="c.yaml")
VALIDATE = stage(
    do="validate", campaign="c.yaml", split={"requests": 200},
    gates={"latency": {"max_ratio": 1.5}},
)  # fmt: skip
RECOMMEND = stage(do="recommend")
BASE = made("baseline", 1000)


def whole():
    """A stage by its kind -> what it found: everything was passed."""
    quiet = ratio(1.0, 0.9, 1.2)
    rows = [row("baseline"), row("int8"), *(batch(n, c) for n in NAMES for c in (1, 8, 32))]
    return [
        ("baseline", stage(do="make", recipes=["baseline"]), Findings(made=(BASE,))),
        ("measure", MEASURE, Findings(load=load(row("baseline"), batch("baseline", 8)))),
        ("int8", MAKE, Findings(made=(made("int8", 600),))),
        ("validate", VALIDATE, Findings(
            quality=(judged("int8"),), split=split(), load=load(*rows, ratios=[quiet]))),
        ("recommend", RECOMMEND, Findings(recommended=Recommended(
            verdict=Verdict.PASS, answer="Serve int8", chosen="int8", sentences=("a", "b"),
            next_steps=()))),
    ]  # fmt: skip


def items(stages, variants=NAMES):
    found = tuple(
        StageEvidence(name, findings, judge(of, findings, BASE), f"0-{name}")
        for name, of, findings in stages
    )
    return {item.title: item for item in checklist(Evidence(variants, found))}


def changed(at, **changes):
    stages = whole()
    return [
        (name, of, msgspec.structs.replace(findings, **changes) if name == at else findings)
        for name, of, findings in stages
    ]


TITLES = (
    "Baseline benchmarked", "Quality on a validation set", "Memory reduction",
    "Production batch sizes", "P95 and P99 under load", "A/B in staging",
    "Model card, correctness gate passed", "Variant to ship",
)  # fmt: skip


def test_all_is_done_with_its_figure_and_its_evidence():
    found = items(whole())
    assert tuple(found) == TITLES
    assert {item.done for item in found.values()} == {Done.DONE}
    assert all(item.figure != "-" and item.evidence for item in found.values())
    assert "int8 0.60 of the baseline (600 bytes)" in found["Memory reduction"].figure
    assert "120 at 1, 120 at 8, 120 at 32" in found["Production batch sizes"].figure
    assert "P95 60 [50, 70], P99 80" in found["P95 and P99 under load"].figure
    assert "loss +0.10% [+0.00%, +0.20%]" in found["Quality on a validation set"].figure
    n = split().shares[0]
    assert f"baseline {n.served} (expected {n.expected})" in found["A/B in staging"].figure


def test_without_evidence_nothing_is_done():
    found = items([])
    assert {item.done for item in found.values()} == {Done.NOT_DONE}
    assert all(item.reason or item.figure != "-" for item in found.values())


def test_a_variant_without_evidence_is_named():
    found = items(whole(), (*NAMES, "awq"))
    for title in TITLES[1:5] + TITLES[6:7]:
        assert found[title].done is Done.NOT_DONE and "no evidence of awq" in found[title].reason
    assert found["Baseline benchmarked"].done is Done.DONE


@pytest.mark.parametrize(
    ("stages", "title", "done", "why"),
    [
        (changed("measure", load=load(row("baseline", slo=Verdict.FAIL, reason="too slow"))),
         TITLES[0], Done.FAILED, "too slow"),
        (changed("measure", load=load(row("baseline", is_valid=False, reason="lag"))),
         TITLES[0], Done.NOT_DONE, "invalid: lag"),
        (changed("validate", quality=(judged("int8", Verdict.FAIL),)), TITLES[1], Done.FAILED,
         "int8: why"),
        (changed("validate", quality=(judged("int8", Verdict.ERROR),)), TITLES[1],
         Done.NOT_DONE, "int8: why"),
        (changed("validate", quality=(judged("int8", Verdict.INCONCLUSIVE),)), TITLES[1],
         Done.INCONCLUSIVE, "int8: why"),
        (changed("validate", quality=None), TITLES[1], Done.NOT_DONE, "no evidence of int8"),
        (changed("int8", made=(made("int8", 800),)), TITLES[2], Done.FAILED, "at most 0.7"),
        (changed("validate", load=load(row("baseline"), row("int8"))), TITLES[3],
         Done.NOT_DONE, "no evidence of int8"),
        (changed("validate", load=load(row("int8", has_tail=False, p99="-"))), TITLES[4],
         Done.INCONCLUSIVE, "have no P99"),
        (changed("validate", load=load(row("int8", slo=Verdict.FAIL, reason="30 %"))),
         TITLES[4], Done.FAILED, "30 %"),
        (changed("validate", split=split(strays=1)), TITLES[5], Done.FAILED, "1 misrouted"),
        (changed("validate", split=split(failed=2)), TITLES[5], Done.FAILED, "HTTP 503"),
        (changed("validate", split=split(n=1)), TITLES[5], Done.INCONCLUSIVE, "send more"),
        (changed("validate", split=None), TITLES[5], Done.NOT_DONE, "no validation"),
        (changed("int8", made=(made("int8", 600, card=None),)), TITLES[6], Done.FAILED,
         "no model card"),
        (changed("int8", made=(made("int8", 600, passed=False, gate="differs"),)), TITLES[6],
         Done.FAILED, "differs"),
    ],
)  # fmt: skip
def test_what_is_missing_or_failed_shows(stages, title, done, why):
    item = items(stages)[title]
    assert item.done is done and why in item.reason


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.9, 1.5, Verdict.PASS),
        (0.9, 1.51, Verdict.INCONCLUSIVE),
        (1.51, 1.9, Verdict.FAIL),
        (None, None, Verdict.INCONCLUSIVE),
        (0.5, None, Verdict.INCONCLUSIVE),
    ],
)
def test_the_latency_bar_is_held_against_the_interval(low, high, verdict):
    found = load(row("baseline"), row("int8"), ratios=[ratio(1.2, low, high)])
    outcome = judge(VALIDATE, Findings(quality=(judged("int8"),), split=split(), load=found), BASE)
    (gate,) = [each for each in outcome.gates if each.gate == "latency"]
    assert gate.verdict is verdict


def test_a_bar_without_a_comparison_is_open_and_a_missing_slo_verdict_too():
    found = load(row("baseline"), row("int8", slo=None))
    outcome = judge(VALIDATE, Findings(quality=(judged("int8"),), split=split(), load=found), BASE)
    verdicts = {(g.gate, g.variant): g.verdict for g in outcome.gates}
    assert verdicts["latency", "int8"] is Verdict.INCONCLUSIVE
    assert verdicts["slo", "int8"] is Verdict.INCONCLUSIVE
    assert not outcome.is_accepted


def test_a_closed_loop_decides_no_latency():
    slow = msgspec.structs.replace(ratio(9.0, 8.0, 10.0), stage="batch-8")
    found = load(row("baseline"), row("int8"), batch("int8", 8), ratios=[ratio(1, 0.9, 1.1), slow])
    outcome = judge(VALIDATE, Findings(quality=(judged("int8"),), split=split(), load=found), BASE)
    assert outcome.verdict is Verdict.PASS


def test_a_latency_bar_that_compared_nothing_is_open():
    of = stage(do="validate", campaign="c.yaml",
               gates={"slo": False, "latency": {"max_ratio": 1.5}})  # fmt: skip
    found = load(batch("baseline", 8), batch("int8", 8), ratios=[ratio(1.0, 0.9, 1.1)])
    outcome = judge(of, Findings(quality=(judged("int8"),), load=found), BASE)
    (gate,) = [each for each in outcome.gates if each.gate == "latency"]
    assert gate.verdict is outcome.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (load(batch("baseline", 8)), Verdict.PASS),
        (load(row("baseline", slo=Verdict.FAIL)), Verdict.PASS),
        (load(batch("baseline", 8, is_valid=False, reason="lag")), Verdict.ERROR),
        (load(batch("baseline", 8), verdict=Verdict.ERROR), Verdict.ERROR),
        (load(), Verdict.INCONCLUSIVE),
        (None, Verdict.INCONCLUSIVE),
    ],
)
def test_without_an_slo_the_gate_is_that_it_was_measured(found, verdict):
    of = stage(do="measure", campaign="c.yaml", gates={"slo": False})
    outcome = judge(of, Findings(load=found), BASE)
    assert outcome.verdict is verdict and outcome.is_accepted == (verdict is Verdict.PASS)
    assert [gate.gate for gate in outcome.gates] == ["load"]


def test_an_invalid_campaign_is_an_error_whatever_its_rows_say():
    found = load(row("baseline"), verdict=Verdict.ERROR)
    outcome = judge(MEASURE, Findings(load=found), BASE)
    assert outcome.verdict is Verdict.ERROR
    assert judge(MEASURE, Findings(load=load(row("baseline", is_valid=False))), BASE).verdict is (
        Verdict.ERROR
    )


def test_findings_of_nothing_pass_no_gate():
    for each in (MEASURE, VALIDATE, RECOMMEND):
        assert judge(each, Findings(), BASE).verdict is Verdict.INCONCLUSIVE
    assert judge(MAKE, Findings(), BASE).verdict is Verdict.INCONCLUSIVE


def test_the_gravest_verdict_counts():
    order = [Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]
    for i, each in enumerate(order):
        assert gravest(order[i:]) is each
    assert gravest([]) is Verdict.INCONCLUSIVE
