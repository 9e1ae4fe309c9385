"""What a variant needs when it starts, from its file, its checkpoint and its device."""

import math
import sys
from types import SimpleNamespace

import pytest

from serve_app.config.gpus import find_gpu, load_gpus
from serve_app.config.parse import parse
from serve_app.config.schema import VariantArgs
from serve_app.config.sizing import variant_plan
from serve_app.domain.errors import ConfigError, PlanError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.units import GIB, MIB
from serve_app.reference.build import CHECKPOINT
from serve_app.serving import start
from serve_app.serving.placement import actor_options, assigned_fraction
from serve_app.serving.start import (
    gpu_need_bytes,
    host_need_bytes,
    require_assigned,
    require_planned_share,
)
from serve_app.store.facts import checkpoint_facts
from tests.fakes.nvml import Card, FakeNvml

L4 = GpuProfile("L4", "L4", 23 * GIB, GIB, (8, 9), 300.0)


def variant(gpu: dict | None = None, **engine: object) -> VariantArgs:
    values = {"model": "m", "name": "a", "checkpoint": "x", "method": "unquantized"}
    return parse(VariantArgs, values | {"gpu": gpu, "engine": engine}, where="test")


@pytest.fixture
def facts():
    return checkpoint_facts(str(CHECKPOINT))


def test_on_a_gpu_it_is_the_plan_of_what_the_file_says(facts):
    args = variant(kv_cache_memory_bytes=GIB, max_model_len=64)
    need = gpu_need_bytes(args, facts, L4)
    assert need == variant_plan(args, facts, L4).need_bytes
    more = variant(kv_cache_memory_bytes=2 * GIB, max_model_len=64)
    assert gpu_need_bytes(more, facts, L4) == need + GIB


def test_without_planned_bytes_it_is_what_vllm_will_take_of_the_card(facts):
    context = variant_plan(variant(max_model_len=64), facts, L4).footprint.context.bytes
    of_default = gpu_need_bytes(variant(max_model_len=64), facts, L4)
    assert of_default == math.ceil(22 * GIB * 0.92) + context
    half = variant(max_model_len=64, gpu_memory_utilization=0.5)
    assert gpu_need_bytes(half, facts, L4) == 11 * GIB + context


def test_on_the_host_it_is_processes_weights_and_cache(facts):
    args = variant(kv_cache_memory_bytes=64 * MIB, max_model_len=64)
    need = host_need_bytes(args, facts, 16 * GIB)
    weights = facts.weights.total_bytes
    assert need > weights + 64 * MIB
    more = variant(kv_cache_memory_bytes=65 * MIB, max_model_len=64)
    assert host_need_bytes(more, facts, 16 * GIB) == need + MIB
    assert host_need_bytes(variant(max_model_len=64), facts, 1000) == 920


def test_the_share_that_ray_set_aside_must_cover_the_need():
    args = variant()
    require_assigned(args, L4, 11 * GIB, 0.5)
    with pytest.raises(PlanError) as caught:
        require_assigned(args, L4, 11 * GIB + 1, 0.5)
    said = str(caught.value)
    assert "needs 11.0 GiB, 0.5001 of this L4, and Ray has set aside 0.5000 (11.0 GiB)" in said
    assert "ray_actor_options.num_gpus" in said
    with pytest.raises(PlanError, match=r"args\.gpu says 0\.4 of a L4; `quantile plan FILE"):
        require_assigned(variant({"type": "L4", "fraction": 0.4}), L4, 11 * GIB, 0.4)


def devices_and_need(patch, args, facts, card: Card, fraction: float):
    FakeNvml(card).install(patch)
    patch.setenv("CUDA_VISIBLE_DEVICES", "0")
    patch.setattr(start, "engines_run_on_cpu", lambda: False)
    patch.setattr(start, "assigned_fraction", lambda: fraction)
    return start._devices_and_need(args, facts)


def test_the_plan_is_of_the_card_that_the_replica_really_has(monkeypatch, facts):
    """A share of the planned card that is too little on the one that it got."""
    args = variant({"type": "L40S", "fraction": 0.1}, kv_cache_memory_bytes=GIB, max_model_len=64)
    big = Card("GPU-1", "NVIDIA L40S", total=46068 * MIB)
    (device,), need = devices_and_need(monkeypatch, args, facts, big, 0.1)
    assert (device.key, need.variant, need.why) == ("GPU-1", "a", "")
    small = Card("GPU-2", "NVIDIA L4", total=23034 * MIB)
    with pytest.raises(PlanError, match=r"of this L4, and Ray has set aside 0\.1000"):
        devices_and_need(monkeypatch, args, facts, small, 0.1)


def test_a_card_that_is_not_in_the_catalogue_is_taken_as_nvml_describes_it(monkeypatch, facts):
    args = variant(kv_cache_memory_bytes=GIB, max_model_len=64)
    card = Card("GPU-3", "NVIDIA Future 9000", total=100 * GIB, reserved=4 * GIB)
    _, need = devices_and_need(monkeypatch, args, facts, card, 1.0)
    as_described = GpuProfile("F", "F", 100 * GIB, 4 * GIB, (8, 9), 1.0)
    assert need.need_bytes == variant_plan(args, facts, as_described).need_bytes


def test_an_engine_over_several_gpus_gets_them_all_or_is_refused(monkeypatch, facts):
    args = variant(tensor_parallel_size=2, kv_cache_memory_bytes=GIB, max_model_len=64)
    with pytest.raises(ConfigError, match=r"needs 2 GPU\(s\)"):
        devices_and_need(monkeypatch, args, facts, Card("GPU-4"), 1.0)


def test_a_need_that_no_file_states_is_explained(monkeypatch, facts):
    card = Card("GPU-5", total=23034 * MIB)
    _, need = devices_and_need(monkeypatch, variant(max_model_len=64), facts, card, 1.0)
    said = need.describe()
    assert "(without engine.kv_cache_memory_bytes vLLM takes 92% of a device)" in said


def planned_variant(facts, gpu: str = "L4", **changes: object) -> VariantArgs:
    """A variant with the numbers that `quantile plan --write` puts into its file."""
    asked = variant({"type": gpu, "concurrency": 8}, dtype="bfloat16", max_model_len=512)
    plan = variant_plan(asked, facts, find_gpu(load_gpus(), gpu))
    share = {"type": gpu, "concurrency": 8, "fraction": plan.fraction}
    args = variant(share | changes, dtype="bfloat16", **plan.engine_settings())
    return args.model_copy(update={"checkpoint": str(CHECKPOINT)})


def test_the_builder_takes_planned_shares_and_refuses_less(facts):
    require_planned_share(planned_variant(facts))
    with pytest.raises(PlanError, match=r"gpu\.fraction 0\.0500 of a L4 .* needs 0\.05\d"):
        require_planned_share(planned_variant(facts, fraction=0.05))


def test_the_builder_refuses_what_has_no_kernel_on_the_planned_gpu(facts):
    args = planned_variant(facts, "T4")
    with pytest.raises(PlanError, match=r"variant a: bfloat16 needs compute capability 8\.0"):
        require_planned_share(args)


def test_a_checkpoint_that_the_builders_node_lacks_is_left_to_the_replica(facts, caplog):
    args = planned_variant(facts, fraction=0.05).model_copy(update={"checkpoint": "/only/there"})
    require_planned_share(args)
    assert "checked in the replica" in caplog.text


def test_without_a_gpu_or_with_a_fake_engine_there_is_no_share_to_check():
    require_planned_share(variant())
    require_planned_share(variant({"type": "L4"}, kind="fake"))


def test_a_card_that_is_not_the_planned_one_is_not_taken_for_it(monkeypatch, facts):
    args = variant({"type": "L40S", "fraction": 0.1}, kv_cache_memory_bytes=GIB, max_model_len=64)
    workstation = Card("GPU-6", "NVIDIA RTX A4500", total=20470 * MIB)
    with pytest.raises(PlanError, match=r"Ray has set aside 0\.1000"):
        devices_and_need(monkeypatch, args, facts, workstation, 0.1)


@pytest.mark.parametrize(("n_gpus", "total", "share"), [(1, 0.4, 0.4), (2, 2.0, 1.0), (0, 0, 0.0)])
def test_the_share_is_of_each_gpu(monkeypatch, n_gpus, total, share):
    class Context:
        def get_accelerator_ids(self):
            return {"GPU": [str(i) for i in range(n_gpus)]}

        def get_assigned_resources(self):
            return {"GPU": total} if total else {}

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_runtime_context=Context))
    assert assigned_fraction() == share


def test_a_planned_variant_asks_ray_for_its_share_on_its_type(facts):
    args = planned_variant(facts)
    assert actor_options(args)["num_gpus"] == args.gpu.fraction
    assert actor_options(args)["label_selector"] == {"ray.io/accelerator-type": "L4"}
    wide = variant({"type": "H100"}, tensor_parallel_size=2)
    assert actor_options(wide)["num_gpus"] == 2
    assert actor_options(variant()) == {"num_cpus": 0}


def test_a_driver_that_keeps_more_than_the_catalogue_says_is_named(monkeypatch, facts):
    """Else the replica would wait for memory that its card never has."""
    args = variant(kv_cache_memory_bytes=20 * GIB, max_model_len=64)
    need = gpu_need_bytes(args, facts, find_gpu(load_gpus(), "L4"))
    card = Card("GPU-7", "NVIDIA L4", total=23034 * MIB, reserved=23034 * MIB - need + 1)
    with pytest.raises(PlanError, match=r"driver leaves .* correct reserved_mib"):
        devices_and_need(monkeypatch, args, facts, card, 1.0)
