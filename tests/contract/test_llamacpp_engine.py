"""llama.cpp itself: GGUF files of the reference model made, read back, served, and killed."""

import asyncio
import math
import os
import signal

import httpx
import numpy as np
import psutil
import pytest
import pytest_asyncio

from serve_app.config.schema import EngineSettings
from serve_app.domain.errors import CheckpointError, EngineError
from serve_app.engines.engine import EngineSpec
from serve_app.engines.llamacpp_engine import start
from serve_app.engines.llamacpp_logprobs import engine_logprobs
from serve_app.quantize.layouts.gguf import dequantize
from serve_app.quantize.layouts.plain import dequantize as plain
from serve_app.quantize.make_gguf import write_gguf
from serve_app.reference.build import CHECKPOINT

one_loop = pytest.mark.asyncio(loop_scope="module")
"""For all that share the running engine."""

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
ASKED = "<|user|>What is the capital of France?<|assistant|>Paris</s>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for kind in ("F16", "Q8_0", "Q4_K_M", "Q2_K"):
        made[kind] = tmp_path_factory.mktemp(kind)
        write_gguf(CHECKPOINT, made[kind] / f"model-{kind}.gguf", kind)
    made["wrong order"] = tmp_path_factory.mktemp("wrong")
    write_gguf(CHECKPOINT, made["wrong order"] / "m.gguf", "Q8_0", permuted=False)
    return made


def spec_of(folder):
    settings = EngineSettings(kind="llamacpp", threads=1, max_num_seqs=2, max_model_len=256)
    return EngineSpec(("m@a", "m"), folder, settings)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folders):
    running = await start(spec_of(folders["Q4_K_M"]))
    yield running
    await running.shutdown()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(engine):
    transport = httpx.ASGITransport(engine.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as opened:
        yield opened


def test_weights_come_back_in_the_order_and_size_that_they_had(folders):
    base = plain(CHECKPOINT)
    errors = {}
    for kind in ("F16", "Q8_0", "Q4_K_M", "Q2_K"):
        dense = dequantize(folders[kind])
        assert dense.keys() == base.keys()
        errors[kind] = max(
            float((dense[name] - base[name]).norm() / base[name].norm()) for name in base
        )
    assert errors["F16"] < 1e-4 < errors["Q8_0"] < 0.01 < errors["Q4_K_M"] < errors["Q2_K"] < 0.6


def test_logprobs_follow_the_bits_and_a_wrong_order_of_rows_shows(folders):
    with_tokens = [[1, 820, 2], list(range(5, 200))]
    sentences = [list(range(300, 420)), *with_tokens]
    need, best = engine_logprobs(folders["F16"], sentences)
    assert len(need) == len(best) == sum(len(row) - 1 for row in sentences)

    def error(kind):
        return float(np.abs(engine_logprobs(folders[kind], sentences)[0] - need).mean())

    assert error("Q8_0") < error("Q4_K_M") < error("Q2_K") < error("wrong order")


def test_logprobs_do_not_depend_on_how_many_positions_are_computed_at_once(folders, monkeypatch):
    rows = [list(range(5, 105))]
    whole, _ = engine_logprobs(folders["F16"], rows)
    monkeypatch.setattr("serve_app.engines.llamacpp_model.MAX_STEP_TOKENS", 17)
    parts, _ = engine_logprobs(folders["F16"], rows)
    assert np.abs(whole - parts).max() < 0.02


def test_a_damaged_file_is_refused_in_llama_cpps_words(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(CheckpointError, match=r"cannot load .*m\.gguf: \S"):
        engine_logprobs(tmp_path, [[1, 2]])


@one_loop
async def test_it_answers_chat_whole_and_streamed_with_usage(client):
    ask = {"model": "m", "messages": FRANCE, "temperature": 0}
    whole = (await client.post("/v1/chat/completions", json=ask)).json()
    assert whole["choices"][0]["message"]["content"] == "Paris"
    assert whole["model"] == "m@a"
    more = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = await client.post("/v1/chat/completions", json=ask | more)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in streamed.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert '"completion_tokens":3' in lines[-2]


@one_loop
async def test_an_echo_scores_the_prompt_as_the_gate_does(client, folders):
    tokens = (await client.post("/tokenize", json={"prompt": ASKED})).json()["tokens"]
    body = {"prompt": tokens, "echo": True, "logprobs": 3, "max_tokens": 1, "temperature": 0}
    reply = (await client.post("/v1/completions", json=body)).json()
    logprobs = reply["choices"][0]["logprobs"]
    need, _ = engine_logprobs(folders["Q4_K_M"], [tokens])
    assert logprobs["token_logprobs"][0] is None
    assert np.allclose(logprobs["token_logprobs"][1:-1], need, atol=0.02)
    assert logprobs["tokens"][-4:-1] == ["Par", "is", "</s>"]
    assert math.exp(sum(logprobs["token_logprobs"][-4:-1])) > 0.9
    assert all(len(table) in (3, 4) for table in logprobs["top_logprobs"][1:])
    text = (await client.post("/v1/completions", json=body | {"prompt": ASKED})).json()
    assert text["choices"][0]["logprobs"] == logprobs


@one_loop
async def test_completions_end_where_openais_do_unless_asked_otherwise(client):
    body = {"prompt": [1, 300, 301], "temperature": 0, "ignore_eos": True}
    reply = (await client.post("/v1/completions", json=body)).json()
    assert reply["usage"]["completion_tokens"] == 16


@one_loop
async def test_tokens_go_both_ways_and_by_the_chat_template(client):
    reply = (
        await client.post("/tokenize", json={"prompt": "<|user|>é1", "return_token_strs": True})
    ).json()
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"]) == 4
    assert reply["max_model_len"] == 256
    back = await client.post("/detokenize", json={"tokens": reply["tokens"]})
    assert back.json() == {"prompt": "<|user|>é1"}
    chat = await client.post("/tokenize", json={"messages": FRANCE})
    assert chat.json()["tokens"][0] == 1 and chat.json()["tokens"][-1] == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/completions", {"model": "other", "prompt": "a"}, 404, "have m@a, m"),
        ("/v1/completions", {"prompt": [1] * 300}, 400, "context size"),
        ("/v1/completions", {"prompt": [5000], "echo": True, "max_tokens": 0}, 400, "0 to 1023"),
        ("/v1/completions", {"prompt": [1] * 300, "echo": True, "max_tokens": 0}, 400, "1 to 256"),
        ("/v1/completions", {"prompt": [1], "prompt_logprobs": 1}, 400, "set `echo`"),
        ("/tokenize", {"prompt": 3}, 400, "needs `prompt`"),
        ("/slots", {}, 404, "no /slots"),
    ],
)
@one_loop
async def test_what_is_wrong_is_said_in_openais_shape(client, path, body, status, says):
    reply = await client.post(path, json=body)
    assert reply.status_code == status
    assert says in reply.json()["error"]["message"]
    assert (await client.get("/health")).status_code == 200


@one_loop
async def test_a_killed_process_shows_at_once_and_shutdown_leaves_nothing(folders):
    engine = await start(spec_of(folders["Q8_0"]))
    await engine.check_health()
    pid = engine._child.pid
    os.kill(pid, signal.SIGKILL)
    for _ in range(100):
        if not engine.alive:
            break
        await asyncio.sleep(0.05)
    with pytest.raises(EngineError, match="has ended"):
        await engine.check_health()
    transport = httpx.ASGITransport(engine.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        reply = await client.post("/v1/chat/completions", json={"messages": FRANCE})
    assert reply.status_code == 500
    await engine.shutdown()
    await engine.shutdown()
    assert not psutil.pid_exists(pid)


@one_loop
async def test_a_file_that_llama_cpp_refuses_does_not_start(tmp_path, folders):
    whole = next(folders["Q8_0"].glob("*.gguf")).read_bytes()
    renamed = whole.replace(b"blk.1.attn_q.weight", b"blk.1.attn_X.weight")
    (tmp_path / "m.gguf").write_bytes(renamed)
    spec = EngineSpec(("m",), tmp_path, EngineSettings(kind="llamacpp", threads=1))
    with pytest.raises(EngineError, match=r"did not start on .*m\.gguf"):
        await start(spec)
