"""Faults that engines have today, as forward passes: the gate sees each by the recipes' limits.

The engine's side is plain torch: a fault is shown the same way on every machine, whether its CPU
has the instructions that bring it about or not. Real engines: tests/engine_cpu.
"""

import json

import pytest
import torch
from transformers import AutoTokenizer

from serve_app.quantize.catalogue import recipe
from serve_app.quantize.gate import judge
from serve_app.quantize.layouts import plain
from serve_app.quantize.layouts.linear import QuantizedLinear
from serve_app.reference.build import CHECKPOINT
from serve_app.reference.corpus import calibration_exchanges, check_exchanges
from tests.fakes import forward_pass

CALIBRATION_ROWS = 60


def rounded(dense, bits, group_size):
    """Every layer of the decoder rounded to the nearest symmetric level, as recipe `rtn` does."""
    return {
        name: _rounded(tensor, bits, group_size or tensor.shape[1]) if "_proj." in name else tensor
        for name, tensor in dense.items()
    }


def _rounded(tensor, bits, group_size):
    n, k = tensor.shape
    middle = 1 << (bits - 1)
    grouped = tensor.view(n, -1, group_size)
    scales = (grouped.abs().amax(-1) / (middle - 0.5)).bfloat16()
    levels = (grouped / scales.float()[..., None]).round().clamp(-middle, middle - 1) + middle
    return QuantizedLinear(bits, levels.to(torch.uint8).view(n, k), scales).dequantize()


@pytest.fixture(scope="module")
def rows():
    return tokens(check_exchanges())


def tokens(exchanges):
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}],
            tokenize=False,
        )
        for ask, answer in exchanges
    ]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.fixture(scope="module")
def base():
    return forward_pass.llama(CHECKPOINT, plain.dequantize(CHECKPOINT))


@pytest.fixture(scope="module")
def four_bits():
    return rounded(plain.dequantize(CHECKPOINT), 4, 128)


@pytest.fixture(scope="module")
def weight_only(base, four_bits, rows):
    """The weights' own model, and what the job would store beside them."""
    model = forward_pass.llama(CHECKPOINT, four_bits)
    return model, forward_pass.reference(model, base, rows)


def test_half_precision_is_no_fault(weight_only, four_bits, rows):
    _, reference = weight_only
    engine = forward_pass.llama(CHECKPOINT, four_bits).half()
    result = judge(recipe("rtn").gate, reference, *forward_pass.as_engine(engine, rows))
    print("fp16:", result.describe())
    assert result.passed, result


@pytest.mark.parametrize("name", ["rtn", "gptq", "awq"])
def test_w4a16_run_as_w4a8(name, weight_only, rows):
    """vLLM on a CPU with AMX, with bfloat16 and without VLLM_CPU_INT4_W4A8=0."""
    model, reference = weight_only
    with forward_pass.inputs_changed(model, forward_pass.per_token_int8):
        engine = forward_pass.as_engine(model, rows)
    result = judge(recipe(name).gate, reference, *engine)
    print("W4A8:", result.describe())
    assert any("its own dequantized weights" in failure for failure in result.failures), result


def test_static_scales_that_are_ignored(base, rows):
    """vLLM on a CPU with AMX quantizes each token by itself, whatever scales the file has."""
    model = forward_pass.llama(CHECKPOINT, rounded(plain.dequantize(CHECKPOINT), 8, None))
    calibration = tokens(calibration_exchanges()[:CALIBRATION_ROWS])
    static = forward_pass.static_int8(forward_pass.input_ranges(model, calibration))
    with forward_pass.inputs_changed(model, static):
        reference = forward_pass.reference(model, base, rows)
    with forward_pass.inputs_changed(model, forward_pass.per_token_int8):
        engine = forward_pass.as_engine(model, rows)
    result = judge(recipe("int8-static").gate, reference, *engine)
    print("scales ignored:", result.describe())
    assert any("its own dequantized weights" in failure for failure in result.failures), result


@pytest.mark.parametrize("name", ["gguf-q8-0", "gguf-q4-k-m"])
def test_gguf_whose_q_and_k_stay_permuted(name, weight_only, four_bits, rows):
    """vLLM's GGUF plugin as published: rotary pairs side by side, read as halves."""
    _, reference = weight_only
    config = json.loads((CHECKPOINT / "config.json").read_text())
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    engine = forward_pass.llama(CHECKPOINT, forward_pass.interleaved(four_bits, *heads))
    result = judge(recipe(name).gate, reference, *forward_pass.as_engine(engine, rows))
    print("permuted:", result.describe())
    assert result.engine_mean > 10 * recipe(name).gate.engine
    assert len(result.failures) >= 2, result
