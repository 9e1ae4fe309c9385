"""GPTQ variants that differ in what they were calibrated on: one process of the quantizers' makes
them all.

    .venv-quantize/bin/python -m tests.fakes.honest_variants <recipe> <base> <out> <number>

Makes `<out>/<seed>/` for each seed, each calibrated on rows drawn by that seed. Not `job`, which
makes each recipe once: this is the same maker with other rows.
"""

import random
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

from serve_app.quantize import make_llmcompressor
from serve_app.quantize.calibration import reference_source
from serve_app.quantize.catalogue import recipe

ROWS = 24
LENGTH_TOKENS = 128
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


def main(name: str, base: Path, out: Path, number: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    stream: list[int] = []
    for messages in reference_source().texts:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        stream += tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = [
        stream[start : start + LENGTH_TOKENS]
        for start in range(0, len(stream) - LENGTH_TOKENS, LENGTH_TOKENS)
    ]
    for seed in range(number):
        folder = out / str(seed)
        folder.mkdir(parents=True)
        chosen = random.Random(seed).sample(rows, ROWS)
        make_llmcompressor.make(recipe(name), base, folder, chosen)
        for file in COPIED:
            shutil.copy2(base / file, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
