"""Our 4-bit kernel in vLLM: the checkpoint's numbers, multiplied as they say; no engine needed."""

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def int4pack():
    import torch

    from serve_app.engines import vllm_int4pack

    if torch.backends.cpu.get_cpu_capability() != "AVX512" or torch.cpu._is_amx_tile_supported():
        pytest.skip("needs a CPU with AVX-512 and without AMX: elsewhere vLLM's kernel runs")
    return vllm_int4pack


def pack(values, dim):
    """Eight 4-bit values along `dim` to an int32, the lowest first."""
    import torch

    values = values.to(torch.int64).movedim(dim, -1)
    shifts = torch.arange(8) * 4
    packed = (values.reshape(*values.shape[:-1], -1, 8) << shifts).sum(-1)
    return (packed - ((packed >> 31) << 32)).to(torch.int32).movedim(-1, dim).contiguous()


def parameter(tensor, **dims):
    import torch

    made = torch.nn.Parameter(tensor, requires_grad=False)
    for name, value in dims.items():
        setattr(made, name, value)
    return made


def make_layer(int4pack, *, group_size, symmetric, rows_first, outputs=96, inputs=512):
    """A layer as vLLM's loaders leave it, in compressed-tensors' order of axes or in GPTQ's."""
    import torch
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import (
        MPLinearLayerConfig,
    )
    from vllm.scalar_type import scalar_types

    generator = torch.Generator().manual_seed(group_size + symmetric)
    n_groups = 1 if group_size == -1 else inputs // group_size
    values = torch.randint(0, 16, (outputs, inputs), generator=generator)
    scale = (torch.rand(outputs, n_groups, generator=generator) + 0.5).to(torch.bfloat16)
    point = torch.full((outputs, n_groups), 8)
    if not symmetric:
        point = torch.randint(0, 16, (outputs, n_groups), generator=generator)
    layer = torch.nn.Module()
    if rows_first:
        layer.w = parameter(pack(values, 1), input_dim=1, output_dim=0, packed_dim=1)
        layer.s = parameter(scale, input_dim=1, output_dim=0)
        layer.z = parameter(pack(point, 0), input_dim=1, output_dim=0, packed_dim=0)
    else:
        layer.w = parameter(pack(values.t(), 0), input_dim=0, output_dim=1, packed_dim=0)
        layer.s = parameter(scale.t().contiguous(), input_dim=0, output_dim=1)
        layer.z = parameter(pack(point.t(), 1), input_dim=0, output_dim=1, packed_dim=1)
    config = MPLinearLayerConfig(
        full_weight_shape=(inputs, outputs),
        partition_weight_shape=(inputs, outputs),
        weight_type=scalar_types.uint4b8 if symmetric else scalar_types.uint4,
        act_type=torch.bfloat16,
        group_size=group_size,
        zero_points=not symmetric,
    )
    repeats = inputs // n_groups
    dense = (values - point.repeat_interleave(repeats, 1)) * scale.float().repeat_interleave(
        repeats, 1
    )
    return config, int4pack.Int4PackLinearKernel(config, "w", "s", "z"), layer, dense


@pytest.mark.parametrize("rows_first", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
def test_it_multiplies_by_what_the_checkpoint_says(int4pack, group_size, symmetric, rows_first):
    import torch

    _, kernel, layer, dense = make_layer(
        int4pack, group_size=group_size, symmetric=symmetric, rows_first=rows_first
    )
    kernel.process_weights_after_loading(layer)
    x = torch.randn(2, 3, 512, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    bias = torch.randn(96, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    need = x.float() @ dense.t() + bias.float()
    have = kernel.apply_weights(layer, x, bias).float()
    assert have.shape == need.shape
    # bf16 has 8 bits: the result's last one, and the zero's where it is not 0.
    assert (have - need).abs().max() / need.abs().max() < 2**-7
    nudged = x.float() @ (dense + dense.abs().mean() * 0.1).t() + bias.float()
    assert (have - nudged).abs().max() / need.abs().max() > 2**-7


def test_vllm_chooses_it_where_it_is_fast_and_its_own_elsewhere(int4pack):
    import dataclasses

    import torch
    from vllm.model_executor.kernels.linear import choose_mp_linear_kernel
    from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel

    int4pack.offer()
    int4pack.offer()
    config, *_ = make_layer(int4pack, group_size=128, symmetric=True, rows_first=True)
    assert choose_mp_linear_kernel(config) is int4pack.Int4PackLinearKernel
    for other in ({"act_type": torch.float16}, {"group_size": 16}):
        chosen = choose_mp_linear_kernel(dataclasses.replace(config, **other))
        assert chosen is CPUWNA16LinearKernel, other
