"""The gate against real vLLM: passes what is right, catches what loads and is wrong."""

import shutil
from pathlib import Path

import pytest

from serve_app.domain.errors import BuildError
from serve_app.quantize.catalogue import recipe
from serve_app.quantize.gate import Candidate, run_gate
from serve_app.reference.locate import resolve

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
GPTQ = recipe("gptq")


@pytest.fixture
def gptq(family, tmp_path) -> Path:
    return shutil.copytree(resolve("reference://gptq"), tmp_path / "gptq")


def damaged(source: Path, name: str, damage) -> Path:
    """A copy of the checkpoint in which `damage` has changed the tensors."""
    from safetensors.torch import load_file, save_file

    folder = source.with_name(name)
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def permute_rows(tensors):
    """One matrix of 21 has its rows in another order; its scales stay where they are."""
    name = "model.layers.1.mlp.up_proj.weight_packed"
    tensors[name] = tensors[name].roll(1, dims=0).contiguous()


def double_scales(tensors):
    """One matrix's values are twice as large as they were."""
    tensors["model.layers.0.self_attn.o_proj.weight_scale"] *= 2


def swap_nibbles(tensors):
    """The order of the two values in each byte is turned round, as in another packing."""
    name = "model.layers.2.mlp.down_proj.weight_packed"
    packed = tensors[name]
    tensors[name] = (((packed >> 4) & 0x0F0F0F0F) | ((packed & 0x0F0F0F0F) << 4)).contiguous()


def test_the_gate_tells_right_from_wrong(gptq):
    variants = {"right": Candidate(GPTQ, gptq)}
    for damage in (permute_rows, double_scales, swap_nibbles):
        broken = damaged(gptq, damage.__name__, damage)
        variants[damage.__name__] = Candidate(GPTQ, broken)
    results = {}
    run_gate(variants, results.__setitem__)
    assert results["right"].passed, results["right"]
    for damage in (permute_rows, double_scales, swap_nibbles):
        result = results[damage.__name__]
        assert not result.passed, result
        # An order of magnitude over what is right: the limit does not sit in the noise.
        assert result.engine_mean > 10 * results["right"].engine_mean, result
        print(damage.__name__, result.describe())


def test_a_checkpoint_that_does_not_load_is_named(gptq):
    folder = gptq.with_name("truncated")
    shutil.copytree(gptq, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(BuildError, match=r"(?s)exit code 1 .*'truncated'.*Safetensor"):
        run_gate({"truncated": Candidate(GPTQ, folder)}, lambda name, result: None)
