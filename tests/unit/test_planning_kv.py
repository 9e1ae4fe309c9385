"""KV cache bytes against published figures, and against vLLM's own arithmetic of groups."""

import dataclasses
import math

import pytest

from serve_app.domain.units import GIB, KIB
from serve_app.planning.kv import CacheLayout, kv_bytes_per_request, kv_bytes_per_token
from tests.unit.test_planning_shape import shape

PAPERS = {
    # Layers x KV heads x head size of the model's own report: keys and values of two bytes.
    "llama-3.1-8b": (2 * 32 * 8 * 128 * 2, "arxiv.org/abs/2407.21783 table 3"),
    "llama-3.1-70b": (2 * 80 * 8 * 128 * 2, "arxiv.org/abs/2407.21783 table 3"),
    "llama-2-7b": (2 * 32 * 32 * 128 * 2, "arxiv.org/abs/2307.09288"),
    "qwen2.5-7b": (2 * 28 * 4 * 128 * 2, "arxiv.org/abs/2412.15115 table 1"),
    "qwen2.5-32b": (2 * 64 * 8 * 128 * 2, "arxiv.org/abs/2412.15115 table 1"),
    "qwen3-8b": (2 * 36 * 8 * 128 * 2, "arxiv.org/abs/2505.09388 table 1"),
    "qwen3-30b-a3b": (2 * 48 * 4 * 128 * 2, "arxiv.org/abs/2505.09388 table 2"),
    "mistral-7b-v0.3": (2 * 32 * 8 * 128 * 2, "arxiv.org/abs/2310.06825 table 1"),
    "mixtral-8x7b": (2 * 32 * 8 * 128 * 2, "arxiv.org/abs/2401.04088 table 1"),
    "gemma-2-9b": (2 * 42 * 8 * 256 * 2, "arxiv.org/abs/2408.00118 table 1"),
    "gemma-3-12b": (2 * 48 * 8 * 256 * 2, "arxiv.org/abs/2503.19786, config of the hub"),
    "phi-3-mini-4k": (2 * 32 * 32 * 96 * 2, "arxiv.org/abs/2404.14219 section 2"),
    "tinyllama-1.1b": (2 * 22 * 4 * 64 * 2, "arxiv.org/abs/2401.02385 table 1"),
    "deepseek-v2-lite": (27 * (512 + 64) * 2, "arxiv.org/abs/2405.04434 appendix B, 2.1.4"),
}

LOGS = [
    # vLLM's "available KV cache memory" in GiB and the tokens that it made of it.
    ("llama-3.1-8b", 56.21, 460_496, "vLLM 0.31 on A100-80GB, notes of a course, session 2"),
    ("qwen2.5-7b", 26.32, 492_912, "vLLM 0.22, log below a test of AsyncLLMEngine.abort"),
    ("qwen3-14b", 9.27, 60_768, "vLLM on RTX 5090, Qwen3-14B-AWQ, startup log of 2026-09-09"),
    ("qwen3-32b", 3.0, 12_272, "vLLM on RTX 5090, Qwen3-32B-AWQ, startup log of 2026-09-08"),
    ("qwen2.5-3b", 2.41, 70_240, "vLLM 0.29 on a card of 6 GiB, log lines of a parser's test"),
    ("qwen2.5-0.5b", 18.65, 1_629_520, "vLLM on a card of 24 GiB, log of 2026-08-22"),
    (
        "llama-2-7b",
        56.18,
        7191 * 16,
        "github.com/kubernetes-sigs/gateway-api-inference-extension/pull/550",
    ),
    ("deepseek-v2-lite", 0.95, 32_768, "github.com/vllm-project/vllm/issues/15871"),
]


@pytest.mark.parametrize(("name", "published"), [(n, b) for n, (b, _) in PAPERS.items()])
def test_bytes_per_token_by_the_papers(name, published):
    assert kv_bytes_per_token(shape(name)) == published


@pytest.mark.parametrize(("name", "gib", "tokens", "source"), LOGS)
def test_bytes_per_token_by_logs(name, gib, tokens, source):
    assert kv_bytes_per_token(shape(name)) == pytest.approx(gib * GIB / tokens, rel=0.02), source


def test_well_known_sizes():
    assert kv_bytes_per_token(shape("llama-3.1-8b")) == 128 * KIB
    assert kv_bytes_per_token(shape("llama-3.1-8b"), dtype_bytes=1) == 64 * KIB
    assert kv_bytes_per_token(shape("qwen2.5-7b")) == 56 * KIB


def test_ranks_share_heads_and_copy_the_last_one():
    llama, deepseek = shape("llama-3.1-8b"), shape("deepseek-v2-lite")
    found = [kv_bytes_per_token(llama, 2, ranks) // KIB for ranks in (1, 2, 8, 16)]
    assert found == [128, 64, 16, 16]
    assert kv_bytes_per_token(deepseek, 2, 8) == kv_bytes_per_token(deepseek)


def test_a_request_takes_whole_blocks():
    llama = shape("llama-3.1-8b")
    block = 16 * 128 * KIB
    for tokens, blocks in ((1, 1), (16, 1), (17, 2), (8192, 512)):
        assert kv_bytes_per_request(llama, CacheLayout(tokens, 2048)) == blocks * block
    wide = CacheLayout(17, 2048, block_size=64)
    assert kv_bytes_per_request(llama, wide) == 4 * block


def window_blocks(window: int, batched: int, max_len: int) -> int:
    """`SlidingWindowSpec.max_admission_blocks_per_request` with two steps in flight."""
    return math.ceil(min(window - 1 + 2 * batched, max_len) / 16) + 1


def test_gemma_2_holds_half_its_layers_in_the_window():
    gemma = shape("gemma-2-9b")  # 21 + 21 layers: two groups that share blocks of 21 pages
    page = 16 * 2 * 8 * 256 * 2
    layout = CacheLayout(8192, 1024)
    expected = 21 * page * (512 + window_blocks(4096, 1024, 8192))
    assert kv_bytes_per_request(gemma, layout) == expected
    assert kv_bytes_per_request(gemma, layout) < 8192 * kv_bytes_per_token(gemma)


def test_gemma_3_has_five_windowed_groups_to_a_full_one():
    gemma = shape("gemma-3-12b")  # 8 full layers and 40 windowed ones
    page = 16 * 2 * 8 * 256 * 2
    expected = 8 * page * (32768 // 16 + 5 * window_blocks(1024, 2048, 32768))
    assert kv_bytes_per_request(gemma, CacheLayout(32768, 2048)) == expected


def test_uneven_groups_are_padded():
    gemma = shape("gemma-3-12b")
    page = 16 * 2 * 8 * 256 * 2
    layout = CacheLayout(32768, 2048)
    in_window = window_blocks(1024, 2048, 32768)
    # 10 full and 52 windowed layers (Gemma-3-27B's counts): six groups of 10, the last with 2
    large = dataclasses.replace(gemma, n_layers=62, n_window_layers=52)
    assert kv_bytes_per_request(large, layout) == 10 * page * (2048 + 6 * in_window)
    # 12 and 13: one group of 13 each, as vLLM's comment has it for gpt-oss with a drafter
    near = dataclasses.replace(gemma, n_layers=25, n_window_layers=12)
    assert kv_bytes_per_request(near, layout) == 13 * page * (2048 + in_window)


def test_a_window_longer_than_the_context_saves_nothing():
    phi = shape("phi-3-mini-4k")
    page = 16 * 2 * 32 * 96 * 2
    found = kv_bytes_per_request(phi, CacheLayout(4096, 2048))
    assert found == 32 * page * (4096 // 16 + 1)  # one block more: the window may start inside one
