import dataclasses
from pathlib import Path

import pytest

from serve_app.domain.errors import BuildError, CheckpointError, ConfigError
from serve_app.quantize.publish import publish, work_key
from serve_app.reference.build import CHECKPOINT
from serve_app.store.seal import require_sealed
from tests.fakes.variants import FAIL, GPTQ, FakeGate, FakeQuantizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTILE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models").mkdir(parents=True)


@pytest.fixture
def shop(tmp_path):
    """Publishes gptq of the reference model with a fake job and gate."""

    class Shop:
        out = tmp_path / "models" / "gptq"
        quantizer, gate = FakeQuantizer(), FakeGate()

        def publish(self, **options):
            options = {"needs_twin": False, "quantize": self.quantizer, "gate": self.gate} | options
            return publish(GPTQ, CHECKPOINT, self.out, **options)

        @property
        def names(self):
            return sorted(path.name for path in self.out.parent.iterdir())

    return Shop()


def test_what_passed_appears_whole_and_sealed(shop):
    made = shop.publish()
    assert made.folder == shop.out
    require_sealed(shop.out)
    assert shop.names == ["gptq"]
    assert {"README.md", "gate.json", "manifest.json", "quantile.json"} <= {
        path.name for path in shop.out.iterdir()
    }


def test_what_is_wrong_does_not_appear_and_can_be_looked_at(shop):
    shop.gate.results["gptq"] = FAIL
    with pytest.raises(BuildError, match=r"loads but is wrong.*2\.5000 nats") as raised:
        shop.publish()
    assert not shop.out.exists()
    [work] = shop.out.parent.iterdir()
    assert str(work) in str(raised.value)


def test_a_cut_off_run_goes_on_from_what_it_had_made(shop):
    shop.gate.fail_on.add("gptq")
    with pytest.raises(BuildError, match="could not be judged: the engine died"):
        shop.publish()
    shop.gate.fail_on.clear()
    shop.publish()
    assert shop.quantizer.made == ["gptq"]
    assert shop.names == ["gptq"]


def test_a_killed_job_leaves_nothing_that_looks_published(shop):
    shop.quantizer.fail_on["gptq"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        shop.publish()
    assert not shop.out.exists()
    shop.publish()
    assert shop.quantizer.made == ["gptq", "gptq"]


def test_a_failed_job_is_told_with_its_reason(shop):
    shop.quantizer.fail_on["gptq"] = BuildError("out of memory in layer 3")
    with pytest.raises(BuildError, match="could not be made: out of memory in layer 3"):
        shop.publish()


def test_what_is_there_is_replaced_only_by_force(shop):
    shop.publish()
    with pytest.raises(ConfigError, match=r"exists: .*--force"):
        shop.publish()
    (shop.out / "mine.txt").write_text("old")
    shop.publish(force=True)
    assert not (shop.out / "mine.txt").exists()
    assert shop.names == ["gptq"]


def test_a_failed_replacement_leaves_the_old_one(shop):
    shop.publish()
    shop.gate.results["gptq"] = FAIL
    with pytest.raises(BuildError):
        shop.publish(force=True)
    require_sealed(shop.out)


def test_a_twin_appears_beside_it(shop):
    made = shop.publish(needs_twin=True)
    assert made.twin == shop.out.with_name("gptq-twin")
    require_sealed(made.twin)
    assert shop.names == ["gptq", "gptq-twin"]


def test_two_runs_of_one_folder_do_not_meet(shop):
    def second(base, items, hear):
        with pytest.raises(ConfigError, match="another run works in"):
            shop.publish()
        shop.quantizer(base, items, hear)

    shop.publish(quantize=second)
    assert shop.names == ["gptq"]


def test_a_twin_that_was_left_alone_is_replaced(shop):
    shop.out.with_name("gptq-twin").mkdir(parents=True)
    require_sealed(shop.publish(needs_twin=True).twin)


def test_what_was_judged_as_its_twin_is_served_as_its_twin(shop):
    made = shop.publish(needs_twin=True)
    with pytest.raises(CheckpointError, match="as its dense twin only"):
        require_sealed(made.folder)


def test_a_verdict_that_is_no_number_is_kept_as_a_failure(shop):
    shop.gate.results["gptq"] = dataclasses.replace(
        FAIL, engine_mean=None, engine_max=None, failures=("engine differs by nan nats",)
    )
    with pytest.raises(BuildError, match="engine not a number mean"):
        shop.publish()


def test_the_key_follows_base_recipe_and_calibration(tmp_path):
    base, text = tmp_path / "base", tmp_path / "text.jsonl"
    base.mkdir()
    (base / "config.json").write_text("{}")
    text.write_text('{"text": "one"}')
    finer = GPTQ.model_copy(
        update={"calibration": GPTQ.calibration.model_copy(update={"samples": 8})}
    )

    def keys():
        return {
            work_key(GPTQ, base, None),
            work_key(finer, base, None),
            work_key(GPTQ, base, text),
        }

    first = keys()
    assert len(first) == 3
    text.write_text('{"text": "two"}')
    assert len(keys() - first) == 1
    Path(base / "model.safetensors").write_bytes(b"x")
    assert len(keys() - first) == 3
