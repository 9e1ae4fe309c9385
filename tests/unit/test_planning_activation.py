"""Activation and graph estimates against what vLLM's logs report."""

import dataclasses

import pytest

from serve_app.domain.units import GIB
from serve_app.planning.activation import activation_bytes, capture_sizes, graph_bytes
from tests.unit.test_planning_shape import shape

ACTIVATION = [
    # model, max_num_batched_tokens, max_num_seqs, "GiB for peak activation", most times too much,
    # source. Logs of a start with a warm torch.compile cache; sizes are the defaults of the card.
    ("qwen3-32b", 2048, 256, 0.33, 1.7, "vLLM 0.28+ on RTX 5090, Qwen3-32B-AWQ, 2026-09-08"),
    ("qwen2.5-3b", 2048, 256, 0.22, 2.4, "vLLM 0.29 on 6 GiB, Qwen2.5-3B, parser's test, WARM"),
    ("qwen2.5-0.5b", 2048, 256, 0.25, 2.1, "vLLM on 24 GiB, Qwen2.5-0.5B, log of 2026-08-22"),
]
"""The last two are ruled by the sampler, which we count as it runs and not as it is profiled."""

GRAPHS = [
    # model, largest size, max_num_batched_tokens, max_num_seqs, "took .. GiB", most times too much
    (
        "mistral-7b-v0.3",
        512,
        16384,
        0,
        0.51,
        1.2,
        "0.10.2, llava on mistral-7b: 0.67 for 67 sizes",
    ),
    ("llama-3.1-8b", 512, 8192, 256, 0.77, 1.1, "llama3-8b-gptq-4bit, 51 + 35 graphs"),
    ("qwen2.5-7b", 512, 8192, 256, 0.65, 1.2, "0.24.0, 51 + 35 graphs"),
    ("qwen2.5-7b", 256, 2048, 128, 0.31, 1.6, "0.22.0, 35 + 19 graphs"),
    ("qwen3-32b", 512, 2048, 256, 0.81, 2.0, "RTX 5090, Qwen3-32B-AWQ"),
    ("qwen3-14b", 512, 2048, 256, 0.52, 2.0, "RTX 5090, Qwen3-14B-AWQ"),
    ("qwen2.5-0.5b", 512, 2048, 256, 0.37, 1.7, "24 GiB, model runner V2"),
    ("llama-3.1-8b", 512, 2048, 256, 0.23, 3.6, "0.31.0 on A100, model runner V2"),
]


@pytest.mark.parametrize(("name", "tokens", "seqs", "gib", "most", "source"), ACTIVATION)
def test_activation_covers_what_was_reported(name, tokens, seqs, gib, most, source):
    found = activation_bytes(shape(name), tokens, seqs) / GIB
    assert gib <= found <= most * gib, source


@pytest.mark.parametrize(("name", "tokens", "seqs", "gib"), [("qwen3-32b", 2048, 32, 0.33)])
def test_the_forward_pass_is_met_within_a_fifth(name, tokens, seqs, gib):
    assert activation_bytes(shape(name), tokens, seqs) / GIB == pytest.approx(gib, rel=0.2)


@pytest.mark.parametrize(("name", "largest", "tokens", "seqs", "gib", "most", "source"), GRAPHS)
def test_graphs_cover_what_was_reported(name, largest, tokens, seqs, gib, most, source):
    found = graph_bytes(shape(name), largest, tokens, seqs) / GIB
    assert gib <= found <= most * gib, source


def test_capture_sizes_are_those_of_vllm():
    # `cudagraph_capture_sizes` of vLLM 0.22's own log for a largest size of 256
    assert capture_sizes(256, 2048) == (1, 2, 4, *range(8, 257, 8))
    assert len(capture_sizes(512, 8192)) == 51
    assert len(capture_sizes(64, 8192)) == 11
    assert capture_sizes(0, 8192) == ()
    assert capture_sizes(1, 8192) == (1,)
    assert capture_sizes(5, 8192) == (1, 2, 4)
    assert capture_sizes(512, 100)[-2:] == (96, 100)  # the largest batch is captured


def test_eager_execution_has_no_graphs():
    assert graph_bytes(shape("llama-3.1-8b"), 0, 2048, 64) == 0


def test_estimates_grow_with_what_they_are_made_of():
    llama = shape("llama-3.1-8b")
    assert activation_bytes(llama, 8192, 64) > activation_bytes(llama, 2048, 64)
    assert activation_bytes(llama, 2048, 1024) > activation_bytes(llama, 2048, 64)
    assert activation_bytes(llama, 8192, 64, tensor_parallel=2) < activation_bytes(llama, 8192, 64)
    assert graph_bytes(llama, 512, 8192, 256) > graph_bytes(llama, 64, 8192, 64)


def test_experts_and_latent_attention_widen_a_layer():
    mixtral = shape("mixtral-8x7b")
    dense = dataclasses.replace(mixtral, n_experts=0)
    assert activation_bytes(mixtral, 8192, 64) > activation_bytes(dense, 8192, 64)
    deepseek = dataclasses.replace(shape("deepseek-v2-lite"), n_heads=128)
    plain = dataclasses.replace(deepseek, latent_dim=0)
    assert activation_bytes(deepseek, 8192, 64) > activation_bytes(plain, 8192, 64)
