"""What real engines tell of themselves: the kernels that vLLM chose, and how busy they are."""

import asyncio

import httpx
import pytest

from loadtests.campaign import Metrics
from loadtests.observe.pages import page_urls, read_page, samples_of
from serve_app.config.secrets import internal_token
from tests.engine_cpu.conftest import MODEL, PINS
from tests.fakes.serve_client import CHAT, chat, metrics_file

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
LINEAR = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
SCHEMES = {
    "bf16": ("UnquantizedLinearMethod",),
    "int8": ("CompressedTensorsW8A8Int8", "CPUInt8ScaledMMLinearKernel"),
    "gptq": ("CompressedTensorsWNA16", "CPUWNA16LinearKernel"),
    "awq": ("CompressedTensorsWNA16", "CPUWNA16LinearKernel"),
}
KV_USE = "ray_quantile_engine_kv_use_ratio"


@pytest.fixture(scope="module")
def facts(serve) -> dict[str, dict[str, str]]:
    variants = httpx.get(f"{serve.base_url}/status", timeout=30).json()["variants"]
    return {name: said["facts"] for name, said in variants.items()}


def test_every_linear_layer_says_its_kernel(facts):
    assert facts.keys() == SCHEMES.keys()
    for name, expected in SCHEMES.items():
        kernels = {
            key.removeprefix("kernel."): text.split(" > ")
            for key, text in facts[name].items()
            if key.startswith("kernel.")
        }
        assert kernels.keys() == LINEAR | {"lm_head"}, name
        for kind in LINEAR:
            assert tuple(kernels[kind][: len(expected)]) == expected, (name, kind)
            assert len(kernels[kind]) == len(expected) + 1, "and the CPU kernel its branch"
        assert kernels["lm_head"][0] == "UnquantizedEmbeddingMethod"


def test_four_bits_are_not_silently_computed_with_eight_bit_activations(facts):
    """What CPUs with AMX do unless they are asked not to: `serve_app/decisions/0004`."""
    for name in ("gptq", "awq"):
        assert facts[name]["kernel.o_proj"].split(" > ")[2].startswith("w4a16")


def test_versions_sizes_and_device_are_those_of_the_engine(facts):
    for name, said in facts.items():
        assert said["engine"].startswith("vllm 0.")
        assert said["dtype"] == ("float16" if name in {"gptq", "awq"} else "bfloat16")
        assert (said["max_model_len"], said["max_num_seqs"]) == ("1024", "16")
        assert (said["enforce_eager"], said["threads"]) == ("True", "1")
        assert 0.9 * 67_108_864 < int(said["kv_cache_bytes"]) <= 67_108_864
        assert said["attention"] == "CPU_ATTN"
        assert said["device"]
        assert said["torch"]


async def test_use_of_the_kv_cache_can_be_scraped_while_a_request_runs(serve):
    """From Ray's pages as a campaign does, and from the engine's own.

    Sampled every two seconds: int8's may be of the load of the test before, for that long.
    """
    metrics = Metrics(file_sd=metrics_file(serve.pid), series=(KV_USE,))
    token = {"x-quantile-internal": internal_token()}
    long = chat(PINS[0], 900, ignore_eos=True, min_tokens=900)
    async with httpx.AsyncClient(base_url=serve.base_url, timeout=60) as client:

        async def keep_busy() -> None:
            while True:
                (await client.post(CHAT, json=long)).raise_for_status()

        busy = asyncio.create_task(keep_busy())
        use: dict[str, float] = {}
        own = 0.0
        for _ in range(80):
            pages = [await asyncio.to_thread(read_page, url, 5.0) for url in page_urls(metrics)]
            found = [each for page in pages for each in samples_of(page, metrics.series, 0)]
            use = {each.labels["variant"]: each.value for each in found}
            page = await client.get("/variants/bf16/metrics", headers=token, follow_redirects=True)
            for each in samples_of(page.text, ("vllm:kv_cache_usage_perc",), 0):
                assert each.labels["model_name"] == f"{MODEL}@bf16"
                own = max(own, each.value)
            if use.get("bf16") and use.get("int8") == 0 and own and use.keys() == SCHEMES.keys():
                break
            assert not busy.done()
            await asyncio.sleep(0.5)
        busy.cancel()
    assert use.keys() == SCHEMES.keys()
    assert 0 < use["bf16"] <= 1
    assert use["int8"] == 0
    assert 0 < own <= 1
