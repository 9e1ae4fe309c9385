from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config.replicas import ReplicaBounds, replica_bounds
from serve_app.config.schema import EngineSettings, VariantArgs
from serve_app.config.sizing import (
    cache_wish,
    require_share,
    variant_plan,
    with_planned_sizes,
)
from serve_app.domain.errors import ConfigError, PlanError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.domain.units import BP_TOTAL, GIB, MIB
from serve_app.planning.facts import CheckpointFacts, Source
from serve_app.planning.fixes import Trial, nearest_fixes
from serve_app.planning.footprint import Calibration, EngineSizes, Footprint, Part
from serve_app.planning.plan import CacheWish, MemoryPlan, plan_memory
from serve_app.planning.shape import ModelShape
from serve_app.planning.weights import weights_from_shape

L4 = GpuProfile("L4", "L4", 23034 * MIB, 553 * MIB, (8, 9), 300.0, 0.8)
T4 = GpuProfile("T4", "T4", 15360 * MIB, 456 * MIB, (7, 5), 320.0, 0.5)
H100 = GpuProfile("H100", "H100", 81559 * MIB, 470 * MIB, (9, 0), 3350.0, 7.0)
SIZES = EngineSizes(8192, 32, 2048, 32)
LLAMA = ModelShape("LlamaForCausalLM", 32, 4096, 32, 8, 128, 14336, 128256, 131072, False)
AWQ = QuantScheme(QuantMethod.AWQ, 4, group_size=128, symmetric=False, container="awq")
PLAIN = QuantScheme(QuantMethod.UNQUANTIZED, 16)


def facts_of(scheme: QuantScheme) -> CheckpointFacts:
    return CheckpointFacts("s3://models/x", LLAMA, scheme, weights_from_shape(LLAMA, scheme))


def args(**changes) -> VariantArgs:
    engine = {"dtype": "float16", "max_model_len": 8192, "max_num_seqs": 32}
    return VariantArgs.model_validate(
        {
            "model": "llama",
            "name": "awq",
            "checkpoint": "s3://models/x",
            "method": "awq",
            "gpu": {"type": "L4", **changes.pop("gpu", {})},
            "engine": engine | changes,
        }
    )


def parts(fixed_bytes: int, token_bytes: int = 131072) -> Footprint:
    part = Part(fixed_bytes // 5, Source.ESTIMATED)
    return Footprint(part, part, part, part, part, token_bytes, token_bytes * 8192)


@given(
    needs=st.lists(st.integers(1 * MIB, 40 * GIB), min_size=1, max_size=12),
    gpu=st.sampled_from([L4, T4, H100]),
)
def test_no_mix_that_ray_may_place_on_one_gpu_exceeds_it(needs, gpu):
    """Whatever replicas Ray co-locates: fractions of at most 1 in all mean bytes that fit."""
    context = parts(5 * 700 * MIB)  # 700 MiB in each part, the context among them
    plans = [MemoryPlan("x", gpu, SIZES, context, need) for need in needs]
    placed: list[MemoryPlan] = []
    for plan in plans:  # as Ray does: while the fractions still fit
        if sum(other.fraction_bp for other in [*placed, plan]) <= BP_TOTAL:
            placed.append(plan)
    assert sum(plan.need_bytes for plan in placed) <= gpu.usable_bytes
    # vLLM's own check at each start: what it asks for is free beside all the others' need.
    for plan in placed:
        others = sum(other.need_bytes for other in placed if other is not plan)
        asked = plan.gpu_memory_utilization * gpu.usable_bytes + plan.footprint.context.bytes
        assert asked <= gpu.usable_bytes - others


@given(st.integers(1, L4.usable_bytes))
def test_a_fraction_is_the_least_that_covers_the_need(need):
    plan = MemoryPlan("x", L4, SIZES, parts(0), need)
    assert plan.fraction_bp * L4.usable_bytes >= need * BP_TOTAL
    assert (plan.fraction_bp - 1) * L4.usable_bytes < need * BP_TOTAL
    assert plan.fraction_bp <= BP_TOTAL


def test_the_cache_holds_the_requests_that_were_asked_for():
    plan = plan_memory("awq", L4, SIZES, parts(8 * GIB), CacheWish(concurrency=3))
    assert plan.concurrency == pytest.approx(3, rel=0.01)
    assert plan.concurrency >= 3
    assert plan.cache_tokens >= 3 * 8192


def test_given_bytes_come_first_and_a_fraction_leaves_the_rest():
    given_bytes = plan_memory("awq", L4, SIZES, parts(8 * GIB), CacheWish(2 * GIB, 9, 5000))
    assert given_bytes.kv_cache_bytes == 2 * GIB
    rest = plan_memory("awq", L4, SIZES, parts(8 * GIB), CacheWish(fraction_bp=5000))
    assert rest.fraction_bp == 5000


def test_a_cache_too_small_for_one_request_is_refused_with_the_figures():
    with pytest.raises(PlanError, match=r"512 MiB \(4,096 tokens\).*8,192 tokens needs 1.00 GiB"):
        plan_memory("awq", L4, SIZES, parts(GIB), CacheWish(GIB // 2))
    with pytest.raises(PlanError, match="0 B"):
        plan_memory("awq", L4, SIZES, parts(8 * GIB), CacheWish(fraction_bp=100))


def test_a_tensor_parallel_variant_takes_whole_gpus():
    plan = MemoryPlan("x", L4, replace(SIZES, tensor_parallel_size=2), parts(5 * GIB), GIB)
    assert plan.fraction == 1.0


def test_measured_values_replace_estimates_and_say_so():
    def calibrations(uri, gpu, sizes):
        assert (uri, gpu, sizes.max_num_seqs) == ("s3://models/x", "L4", 32)
        return Calibration(activation_bytes=7 * MIB)

    plan = variant_plan(args(), facts_of(AWQ), L4, calibrations)
    assert plan.footprint.activation == Part(7 * MIB, Source.MEASURED)
    assert plan.footprint.weights.source is Source.CONFIG


def test_an_intended_concurrency_is_computed_anew_over_bytes_that_were_written():
    written = args(kv_cache_memory_bytes=GIB, gpu={"concurrency": 3})
    assert cache_wish(written).kv_cache_bytes == GIB
    assert cache_wish(written, as_written=False).kv_cache_bytes is None
    assert cache_wish(args(kv_cache_memory_bytes=GIB), as_written=False).kv_cache_bytes == GIB


def planned_args(**changes) -> VariantArgs:
    plan = variant_plan(args(gpu={"concurrency": 3}), facts_of(AWQ), L4)
    values = plan.engine_settings() | changes
    gpu = {"concurrency": 3, "fraction": plan.fraction} | values.pop("gpu", {})
    return args(gpu=gpu, **values)


def test_the_plan_of_planned_numbers_is_itself_and_enough():
    written = planned_args()
    again = variant_plan(written, facts_of(AWQ), L4)
    require_share(written, again)
    assert again.engine_settings() == variant_plan(args(gpu={"concurrency": 3}), facts_of(AWQ),
                                                   L4).engine_settings()  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gpu": {"fraction": 0.3}}, r"gpu.fraction 0.3000 of a L4 \(6.59 GiB\) and needs 0.4"),
        ({"gpu": {"fraction": None}}, "has no gpu.fraction: on L4 it needs 0.4"),
        ({"gpu_memory_utilization": 0.9}, "gpu_memory_utilization 0.9 .* set it to 0.4"),
        ({"gpu_memory_utilization": None}, "gpu_memory_utilization 0.92"),
        ({"kv_cache_memory_bytes": 40 * GIB}, "and a L4 has 22.0 GiB"),
        ({"max_num_seqs": 1024}, "raise the fraction, or lower"),
    ],
)
def test_a_share_below_the_need_is_refused_with_the_figures(changes, says):
    written = planned_args(**changes)
    with pytest.raises(PlanError, match=says):
        require_share(written, variant_plan(written, facts_of(AWQ), L4))


def test_an_open_cache_size_is_refused_on_a_shared_gpu():
    written = planned_args(kv_cache_memory_bytes=None)
    with pytest.raises(PlanError, match=r"no engine\.kv_cache_memory_bytes"):
        require_share(written, variant_plan(written, facts_of(AWQ), L4))


def test_fractions_finer_than_rays_and_parts_of_gpus_for_ranks_are_refused():
    with pytest.raises(ValueError, match=r"steps of 0\.0001"):
        args(gpu={"fraction": 0.33333})
    with pytest.raises(ValueError, match="takes whole GPUs"):
        args(gpu={"fraction": 0.5}, tensor_parallel_size=2)


def test_each_fix_that_is_named_makes_the_variant_fit():
    wish = CacheWish(concurrency=12)
    facts = facts_of(PLAIN)
    plan = variant_plan(args(), facts, L4, wish=wish)
    assert not plan.fits
    trial = Trial(plan, facts, wish, lambda gpu, scheme: True)
    fixes = nearest_fixes(trial, [L4, T4, H100])
    names = [fix.split(" ")[0] for fix in fixes]
    assert names == ["gpu.concurrency", "engine.max_model_len", "gpu.type", "a",
                     "engine.tensor_parallel_size"]  # fmt: skip
    concurrency = float(fixes[0].split(" ")[1])
    assert variant_plan(args(), facts, L4, wish=CacheWish(concurrency=concurrency)).fits
    assert not variant_plan(args(), facts, L4, wish=CacheWish(concurrency=concurrency + 0.2)).fits
    length = int(fixes[1].split(" ")[1])
    assert variant_plan(args(max_model_len=length), facts, L4, wish=wish).fits
    assert not variant_plan(args(max_model_len=length + 1024), facts, L4, wish=wish).fits
    assert "H100" in fixes[2]


@pytest.mark.parametrize(
    ("deployment", "bounds"),
    [
        ({}, ReplicaBounds(1, 1)),
        ({"num_replicas": 3}, ReplicaBounds(3, 3)),
        ({"num_replicas": "auto"}, ReplicaBounds(1, 100)),
        ({"autoscaling_config": {"min_replicas": 0, "max_replicas": 4}}, ReplicaBounds(0, 4)),
        ({"num_replicas": "auto", "autoscaling_config": {"max_replicas": 4}}, ReplicaBounds(1, 4)),
    ],
)
def test_replica_bounds_are_serves(deployment, bounds):
    application = {"name": "a", "deployments": [{"name": "VariantServer", **deployment}]}
    assert replica_bounds(application) == bounds


@pytest.mark.parametrize(
    ("deployment", "says"),
    [
        ({"autoscaling_config": {"min_replicas": 5, "max_replicas": 4}}, "from 5 to 4"),
        ({"num_replicas": "many"}, "from 'many'"),
        ({"ray_actor_options": {"num_gpus": 0.2}}, "args.gpu.fraction is the one place"),
    ],
)
def test_bounds_and_shares_that_contradict_are_refused(deployment, says):
    application = {
        "name": "a",
        "args": {"gpu": {"type": "L4"}},
        "deployments": [{"name": "VariantServer", **deployment}],
    }
    with pytest.raises(ConfigError, match=says):
        replica_bounds(application)


def test_a_gpu_type_without_kernels_is_no_fix():
    wish = CacheWish(concurrency=12)
    plan = variant_plan(args(), facts_of(PLAIN), L4, wish=wish)
    trial = Trial(plan, facts_of(PLAIN), wish, lambda gpu, scheme: gpu is not H100)
    assert not any("H100" in fix for fix in nearest_fixes(trial, [L4, T4, H100]))


def test_fixes_are_of_measured_bytes_where_there_are_any():
    def calibrations(uri, gpu, sizes):
        return Calibration(weights_bytes=GIB) if gpu == "T4" else None

    wish = CacheWish(concurrency=10)
    plan = variant_plan(args(), facts_of(PLAIN), L4, wish=wish)
    trial = Trial(plan, facts_of(PLAIN), wish, lambda gpu, scheme: True, calibrations)
    assert any("gpu.type T4" in fix for fix in nearest_fixes(trial, [L4, T4, H100]))


def test_sizes_that_a_file_leaves_open_are_those_of_the_plan():
    """What is planned is what vLLM is given: its own defaults follow the whole card."""
    settings = with_planned_sizes(EngineSettings())
    assert settings.max_num_seqs == 64
    assert settings.max_num_batched_tokens == 2048
    assert settings.max_cudagraph_capture_size == 64
    assert with_planned_sizes(EngineSettings(max_num_seqs=4096)).max_num_batched_tokens == 4096
    given = EngineSettings(max_num_seqs=8, max_num_batched_tokens=512, max_cudagraph_capture_size=4)
    assert with_planned_sizes(given) == given
    assert with_planned_sizes(EngineSettings(enforce_eager=True)).max_cudagraph_capture_size is None


def test_sizes_reach_the_footprint():
    def parts_of(**engine):
        return variant_plan(args(**engine), facts_of(AWQ), L4).footprint

    plain = parts_of()
    assert parts_of(kv_cache_dtype="fp8").kv_bytes_per_token * 2 == plain.kv_bytes_per_token
    assert parts_of(enforce_eager=True).cuda_graphs.bytes == 0 < plain.cuda_graphs.bytes
    assert parts_of(max_num_seqs=512).activation.bytes > plain.activation.bytes
    assert "max_cudagraph_capture_size" not in variant_plan(
        args(enforce_eager=True), facts_of(AWQ), L4
    ).engine_settings()  # fmt: skip


def test_latent_attention_is_planned_in_its_larger_blocks():
    latent = replace(LLAMA, latent_dim=512, rope_dim=64, nope_dim=128, value_dim=128)
    facts = CheckpointFacts("x", latent, AWQ, weights_from_shape(latent, AWQ))
    plan = variant_plan(args(max_model_len=4100), facts, L4, wish=CacheWish(concurrency=1))
    assert plan.kv_cache_bytes >= 4224 * plan.footprint.kv_bytes_per_token  # 33 blocks of 128


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ({"max_model_len": 200_000}, "max_model_len 200,000, and its model ends at 131,072"),
        ({"tensor_parallel_size": 3}, "does not divide the model's 32 attention heads"),
        ({"engine_args": {"speculative_config": {}}}, r"speculative_config \(a draft model\)"),
    ],
)
def test_what_vllm_would_refuse_or_the_plan_does_not_know_is_refused(engine, says):
    with pytest.raises(PlanError, match=says):
        variant_plan(args(**engine), facts_of(AWQ), L4)


def test_a_block_size_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="have 'abc'"):
        variant_plan(args(engine_args={"block_size": "abc"}), facts_of(AWQ), L4)


def test_a_utilization_that_forgets_the_context_is_refused():
    share = variant_plan(args(gpu={"concurrency": 3}), facts_of(AWQ), L4).fraction
    written = planned_args(gpu_memory_utilization=share)
    with pytest.raises(PlanError, match="beside the CUDA context"):
        require_share(written, variant_plan(written, facts_of(AWQ), L4))
