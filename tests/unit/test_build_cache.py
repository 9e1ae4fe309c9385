import fcntl
import json
import re
import threading

import numpy as np
import pytest
import yaml

from serve_app.domain.errors import BuildError, CheckpointError
from serve_app.quantize.gate import judge
from serve_app.quantize.order import Event
from serve_app.quantize.recipes import Tolerance
from serve_app.reference.build import CHECKPOINT, build
from serve_app.reference.locate import QUANTIZE_JSON, resolve
from serve_app.reference.logprobs import Reference, load_reference, save_reference
from serve_app.store.manifest import write_manifest
from serve_app.store.seal import read_gate, require_sealed
from tests.fakes.variants import AWQ, FAIL, GPTQ, FakeGate, FakeQuantizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTILE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def quantizer():
    return FakeQuantizer()


@pytest.fixture
def gate():
    return FakeGate()


def test_a_built_variant_is_found_by_its_uri(quantizer, gate):
    [built] = build([GPTQ], quantizer, gate)
    assert resolve("reference://gptq") == built.folder.resolve()
    assert built.weights_bytes == 10
    assert (built.folder.stat().st_mode & 0o777) == 0o755


def test_the_second_build_does_nothing(quantizer, gate):
    states = []
    first = build([GPTQ, AWQ], quantizer, gate)
    second = build([GPTQ, AWQ], quantizer, gate, report=lambda *event: states.append(event))
    assert second == first
    assert quantizer.made == gate.judged == ["gptq", "awq"]
    assert states == [("gptq", "cached"), ("awq", "cached")]


def test_a_format_that_nothing_here_runs_is_judged_as_its_twin(quantizer, gate):
    [built] = build([GPTQ], quantizer, gate, needs_twin=lambda recipe: True)
    assert resolve("reference://gptq-twin") == built.twin.resolve()
    assert resolve("reference://gptq") == built.folder.resolve()
    assert [c.served for c in gate.candidates] == [built.twin]
    for folder in (built.folder, built.twin):
        assert [each.judged for each in read_gate(folder).judgements] == ["twin"]
    build([GPTQ], quantizer, gate, needs_twin=lambda recipe: True)
    assert quantizer.made == gate.judged == ["gptq"]
    build([GPTQ], quantizer, gate)  # an engine runs it by now
    with pytest.raises(CheckpointError, match="not built"):
        resolve("reference://gptq-twin")


def test_what_passed_is_sealed_and_a_changed_byte_breaks_the_seal(quantizer, gate):
    [built] = build([GPTQ], quantizer, gate)
    require_sealed(built.folder)
    weights = built.folder / "model.safetensors"
    weights.write_bytes(b"y" * 10)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has another SHA-256"):
        require_sealed(built.folder)
    (built.folder / "extra.safetensors").write_bytes(b"z")
    with pytest.raises(CheckpointError, match=r"extra\.safetensors is not in manifest\.json"):
        require_sealed(built.folder)
    (built.folder / "extra.safetensors").unlink()
    weights.write_bytes(b"x" * 9)
    with pytest.raises(CheckpointError, match="has 9 bytes, need 10"):
        require_sealed(built.folder)


def test_what_failed_or_was_never_judged_is_not_served(quantizer, gate):
    [built] = build([GPTQ], quantizer, gate)
    gate.results["gptq"] = FAIL
    with pytest.raises(BuildError):
        build([GPTQ], quantizer, gate, force=True)
    with pytest.raises(CheckpointError, match=r"failed the correctness gate.*2\.5000 nats"):
        require_sealed(built.folder)
    (built.folder / "gate.json").unlink()
    with pytest.raises(CheckpointError, match=r"has not passed.*quantile gate"):
        require_sealed(built.folder)
    (built.folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        require_sealed(built.folder)


def test_a_verdict_on_other_files_does_not_count(quantizer, gate):
    [built] = build([GPTQ], quantizer, gate)
    (built.folder / "config.json").write_text('{"other": 1}')
    write_manifest(built.folder)
    with pytest.raises(CheckpointError, match="not what the correctness gate judged"):
        require_sealed(built.folder)


def test_a_checkpoint_from_elsewhere_brings_no_seal(tmp_path):
    require_sealed(tmp_path)


def test_the_card_says_what_was_found(quantizer, gate):
    [built] = build([GPTQ], quantizer, gate)
    card = (built.folder / "README.md").read_text()
    assert card.startswith("---\n")
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model_relation"] == "quantized"
    assert "compressed-tensors" in front["tags"]
    assert "**Passed**" in card


def test_an_interrupted_build_resumes(quantizer, gate, cache):
    quantizer.fail_on["awq"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        build([GPTQ, AWQ], quantizer, gate)
    build([GPTQ, AWQ], quantizer, gate)
    assert quantizer.made == ["gptq", "awq", "awq"]
    assert gate.judged == ["gptq", "awq"]
    assert len(list((cache / "models").iterdir())) == 2


def test_what_a_killed_build_left_is_thrown_away(quantizer, gate, cache):
    left = cache / "models" / ".making-abc"
    left.mkdir(parents=True)
    (left / QUANTIZE_JSON).write_text("{}")
    build([GPTQ], quantizer, gate)
    assert quantizer.made == ["gptq"]
    assert not left.exists()


def test_a_folder_appears_only_when_it_is_whole(quantizer, gate):
    build([GPTQ, AWQ], quantizer, gate)
    assert [len(names) for names in quantizer.seen_finished] == [0, 1]


def says_it_made(base, items, hear):
    for item in items:
        hear(Event(variant=item.recipe.name, state="made"))


def test_a_job_that_writes_no_card_has_failed(gate, cache):
    with pytest.raises(BuildError, match=QUANTIZE_JSON):
        build([GPTQ], says_it_made, gate)
    assert list((cache / "models").iterdir()) == []


def test_a_wrong_variant_fails_the_build_with_its_numbers(quantizer, gate):
    gate.results["awq"] = FAIL
    with pytest.raises(BuildError, match=r"awq: engine differs by 2\.5000 nats.*0\.003.*30\.00%"):
        build([GPTQ, AWQ], quantizer, gate)
    assert resolve("reference://gptq").is_dir()
    with pytest.raises(CheckpointError, match="quantile reference build"):
        resolve("reference://awq")


def test_a_failed_variant_is_judged_again_not_made_again(quantizer, gate):
    gate.results["gptq"] = FAIL
    with pytest.raises(BuildError):
        build([GPTQ], quantizer, gate)
    gate.results.clear()
    build([GPTQ], quantizer, gate)
    assert quantizer.made == ["gptq"]
    assert gate.judged == ["gptq", "gptq"]


def test_a_rebuilt_variant_that_fails_loses_its_link(quantizer, gate):
    build([GPTQ], quantizer, gate)
    gate.results["gptq"] = FAIL
    with pytest.raises(BuildError):
        build([GPTQ], quantizer, gate, force=True)
    with pytest.raises(CheckpointError):
        resolve("reference://gptq")


def test_a_variant_made_but_never_judged_is_judged(quantizer, gate):
    gate.fail_on.add("awq")
    with pytest.raises(BuildError, match="died on awq"):
        build([GPTQ, AWQ], quantizer, gate)
    gate.fail_on.clear()
    build([GPTQ, AWQ], quantizer, gate)
    assert quantizer.made == ["gptq", "awq"]
    assert gate.judged == ["gptq", "awq"]


def test_stricter_limits_judge_again_without_making_again(quantizer, gate):
    build([GPTQ], quantizer, gate)
    stricter = GPTQ.gate.model_copy(update={"engine": 1e-6})
    build([GPTQ.model_copy(update={"gate": stricter})], quantizer, gate)
    assert quantizer.made == ["gptq"]
    assert gate.judged == ["gptq", "gptq"]


def test_force_makes_and_judges_anew(quantizer, gate, cache):
    build([GPTQ], quantizer, gate)
    build([GPTQ], quantizer, gate, force=True)
    assert quantizer.made == gate.judged == ["gptq", "gptq"]
    assert len(list((cache / "models").iterdir())) == 1


def test_another_base_is_another_folder(quantizer, gate, tmp_path):
    [first] = build([GPTQ], quantizer, gate)
    base = tmp_path / "base"
    base.mkdir()
    for path in CHECKPOINT.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    (base / "config.json").write_text(json.dumps({"changed": True}))
    [second] = build([GPTQ], quantizer, gate, base=base)
    assert first.folder != second.folder
    assert resolve("reference://gptq") == second.folder.resolve()


def test_a_base_with_a_file_missing_is_refused(quantizer, gate, tmp_path):
    with pytest.raises(CheckpointError, match=r"need model\.safetensors"):
        build([GPTQ], quantizer, gate, base=tmp_path)


def test_a_second_build_waits_for_the_first(quantizer, gate, cache):
    cache.mkdir()
    waiting = threading.Event()
    thread = threading.Thread(
        target=build,
        args=([GPTQ], quantizer, gate),
        kwargs={"report": lambda variant, state: "waiting" in state and waiting.set()},
    )
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread.start()
        assert waiting.wait(10)
        assert quantizer.made == []
    thread.join(10)
    assert quantizer.made == ["gptq"]


@pytest.mark.parametrize("uri", ["reference://", "reference://../x", "reference://.x", "s3://a/b"])
def test_names_that_lead_nowhere_are_refused(uri):
    with pytest.raises(CheckpointError):
        resolve(uri)


def test_a_path_is_a_checkpoint_if_it_has_a_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)) == tmp_path.resolve()


LIMITS = Tolerance(engine=0.01, engine_max=0.1, quantization=0.05, agreement=0.9, reason="rounding")
TOKENS = [[5, 6, 7], [8, 9, 10, 11]]


def reference(shift_base=0.0):
    logprobs = [np.array([-0.1, -0.2]), np.array([-0.3, -0.1, -3.0])]
    return Reference(
        tokens=TOKENS,
        logprobs=logprobs,
        best=[np.array([6, 7]), np.array([9, 10, 99])],
        best_logprobs=[np.array([-0.1, -0.2]), np.array([-0.3, -0.1, -1.5])],
        base_logprobs=[row + shift_base for row in logprobs],
    )


RIGHT = np.array([-0.1, -0.2, -0.3, -0.1, -3.0])
BEST = np.array([6, 7, 9, 10, 99])


def test_judge_passes_what_agrees():
    result = judge(LIMITS, reference(), RIGHT, BEST)
    assert result.passed
    assert (result.n_tokens, result.n_decided, result.agreement) == (5, 4, 1.0)


def test_judge_ignores_a_swap_where_the_reference_is_torn():
    assert judge(LIMITS, reference(), RIGHT, np.array([6, 7, 9, 10, 11])).passed


@pytest.mark.parametrize(
    ("logprobs", "best", "shift", "reason"),
    [
        (RIGHT + 0.02, BEST, 0.0, "engine differs .* by 0.0200 nats"),
        (RIGHT, np.array([6, 7, 9, 1, 99]), 0.0, "same top token at 75.00% of 4"),
        (RIGHT, BEST, 0.06, "differ from the base by 0.0600"),
    ],
)
def test_judge_fails_what_differs(logprobs, best, shift, reason):
    result = judge(LIMITS, reference(shift), logprobs, best)
    assert len(result.failures) == 1
    assert re.search(reason, result.failures[0])


def test_judge_sees_one_position_that_the_mean_hides():
    one = np.array([0.04, 0, 0, 0, 0])  # 0.008 on average
    assert judge(LIMITS, reference(), RIGHT + one, BEST).passed
    [failure] = judge(LIMITS, reference(), RIGHT + one * 3, BEST).failures[-1:]
    assert "0.120 nats at one position" in failure


def test_judge_fails_what_is_no_number():
    failures = judge(LIMITS, reference(), np.full(5, np.nan), BEST).failures
    assert any("by nan nats" in failure for failure in failures)


def test_reference_survives_the_file(tmp_path):
    path = tmp_path / "reference.npz"
    save_reference(path, reference())
    loaded = load_reference(path)
    assert loaded.tokens == TOKENS
    assert [row.tolist() for row in loaded.best] == [[6, 7], [9, 10, 99]]
    np.testing.assert_allclose(loaded.logprobs[1], [-0.3, -0.1, -3.0], rtol=1e-6)


def test_a_damaged_reference_is_named(tmp_path):
    path = tmp_path / "reference.npz"
    path.write_bytes(b"PK not really")
    with pytest.raises(CheckpointError, match="--force"):
        load_reference(path)


def test_a_variant_that_cannot_be_made_costs_the_others_nothing(quantizer, gate):
    quantizer.fail_on = {"gptq": BuildError("the job ran out of memory")}
    with pytest.raises(BuildError, match="gptq: the job ran out of memory"):
        build([GPTQ, AWQ], quantizer, gate)
    assert gate.judged == ["awq"]
    assert resolve("reference://awq").is_dir()
    with pytest.raises(CheckpointError):
        resolve("reference://gptq")


def test_a_variant_that_ends_the_engine_costs_the_others_nothing(quantizer, gate):
    """Engines judge one after the other in one process; an abort takes the rest with it."""
    gate.fail_on = {"gptq"}
    with pytest.raises(BuildError, match="gptq: the engine died on gptq"):
        build([GPTQ, AWQ], quantizer, gate)
    assert gate.judged == ["awq"]
    assert resolve("reference://awq").is_dir()
    with pytest.raises(CheckpointError):
        resolve("reference://gptq")
