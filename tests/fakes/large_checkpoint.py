"""A checkpoint of random bytes in shards, whole enough to be pushed and pulled."""

import json
from pathlib import Path
from random import Random

from serve_app.domain.units import MIB
from tests.fakes.checkpoints import write_safetensors


def write_large(folder: Path, n_mib: int, shard_mib: int = 24) -> Path:
    """`n_mib` MiB of weights in files of at most `shard_mib`, each with one tensor."""
    folder.mkdir(parents=True)
    weight_map = {}
    for number, start in enumerate(range(0, n_mib, shard_mib)):
        name, file = f"model.layers.{number}.w.weight", f"model-{number:05}.safetensors"
        rows = min(shard_mib, n_mib - start)
        write_safetensors(folder / file, {name: ("BF16", [rows, MIB // 2])})
        with (folder / file).open("r+b") as opened:
            opened.seek(-rows * MIB, 2)
            for row in range(rows):
                opened.write(Random(start + row).randbytes(MIB))
        weight_map[name] = file
    (folder / "config.json").write_text('{"model_type": "llama"}')
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
