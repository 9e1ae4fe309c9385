"""Run as a program: one vLLM engine that holds two requests, asked by six; prints its load."""

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

import httpx

from serve_app.config.schema import EngineSettings
from serve_app.engines.engine import EngineLoad, EngineSpec
from serve_app.engines.vllm_engine import start

SETTINGS = EngineSettings(
    max_model_len=512,
    max_num_seqs=2,
    kv_cache_memory_bytes=32 << 20,
    enforce_eager=True,
    threads=1,
)


async def main(checkpoint: Path) -> None:
    engine = await start(EngineSpec(("m",), checkpoint, SETTINGS))
    seen: list[EngineLoad] = [engine.load()]
    body = {"model": "m", "prompt": "the capital of", "max_tokens": 200, "ignore_eos": True}
    transport = httpx.ASGITransport(engine.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://m", timeout=60) as client:
        asked = asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(6)))
        while not asked.done():
            await asyncio.sleep(0.01)
            seen.append(engine.load())
        statuses = [answer.status_code for answer in await asked]
    await asyncio.sleep(0.5)
    after = engine.load()
    await engine.shutdown()
    loads = [asdict(load) for load in seen]
    print(json.dumps({"loads": loads, "after": asdict(after), "statuses": statuses}))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
