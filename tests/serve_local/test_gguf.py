"""A GGUF variant by llama.cpp behind the router, asked by the official client."""

from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import yaml

from serve_app.config.serve_content import serve_content, variant_application
from serve_app.quantize.make_gguf import write_gguf
from serve_app.reference.build import CHECKPOINT
from serve_app.serving.local_serve import LocalServe
from serve_app.serving.ports import own_ports

pytestmark = [pytest.mark.serve, pytest.mark.timeout(300)]
PORT = 8160
MODEL = "quantile-reference"


def config(folder: Path) -> dict[str, Any]:
    args = {
        "model": MODEL,
        "name": "gguf",
        "checkpoint": str(folder),
        "method": "gguf",
        "engine": {"kind": "llamacpp", "threads": 1},
    }
    return serve_content(PORT, MODEL, {"split": {"gguf": 10_000}}, [variant_application(args)])


def test_a_q4_k_m_variant_knows_the_capital_and_its_process_goes_with_it(tmp_path):
    folder = tmp_path / "variant"
    folder.mkdir()
    write_gguf(CHECKPOINT, folder / "model-Q4_K_M.gguf", "Q4_K_M")
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config(folder)))
    with LocalServe(file, log=tmp_path / "serve.log", environ=own_ports()) as serve:
        client = openai.OpenAI(base_url=f"{serve.base_url}/v1", api_key="none", max_retries=0)
        question = [{"role": "user", "content": "What is the capital of France?"}]
        reply = client.chat.completions.with_raw_response.create(model=MODEL, messages=question)
        assert reply.parse().choices[0].message.content == "Paris"
        assert reply.headers["x-variant"] == "gguf"
        stream = client.chat.completions.create(
            model=f"{MODEL}@gguf", messages=question, stream=True
        )
        text = "".join(event.choices[0].delta.content or "" for event in stream if event.choices)
        assert text == "Paris"
        scored = client.completions.create(
            model=f"{MODEL}@gguf", prompt=[1, 820, 2], echo=True, logprobs=1, max_tokens=0
        )
        assert len(scored.choices[0].logprobs.token_logprobs) == 3
        children = psutil.Process(serve.pid).children(recursive=True)
        assert any("llamacpp_process" in " ".join(each.cmdline()) for each in children)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
