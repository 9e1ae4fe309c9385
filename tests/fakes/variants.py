"""A quantization job and a gate without their engines, for what is built around them."""

import json
from dataclasses import asdict

from serve_app.domain.errors import BuildError
from serve_app.quantize.catalogue import recipe
from serve_app.quantize.gate import GateResult
from serve_app.quantize.order import Event
from serve_app.reference.locate import QUANTIZE_JSON, cache_dir

GPTQ, AWQ = recipe("gptq"), recipe("awq")
PASS = GateResult(100, 90, 0.001, 0.01, 1.0, 0.01, ())
LAYERS = [
    {"name": "model.layers.0.mlp.up_proj", "relative": 0.2},
    {"name": "lm_head", "relative": None},
]
RECORD = {
    "base": "base", "variant": "gptq", "summary": "made for a test", "method": "gptq",
    "scheme": asdict(GPTQ.scheme), "recipe": GPTQ.model_dump(mode="json"), "wall_seconds": 1.0,
    "engine": {"kind": "vllm", "dtype": "float16"}, "calibration": None,
    "weight_error": {"by_kind": {"attention": {"relative": 0.1}}, "layers": LAYERS},
    "libraries": {"torch": "2.13.0"},
}  # fmt: skip
FAIL = GateResult(100, 90, 2.5, 9.0, 0.3, 0.01, ("engine differs by 2.5000 nats: need <= 0.003",))


class FakeQuantizer:
    """Writes the files that a job writes, and records what it was asked for.

    `fail_on`: by variant a `BuildError` that is told, or anything else, which ends the job.
    """

    def __init__(self):
        self.made = []
        self.fail_on = {}
        self.seen_finished = []

    def __call__(self, base, items, hear):
        for item in items:
            name = item.recipe.name
            hear(Event(variant=name, state="quantizing"))
            self.made.append(name)
            self.seen_finished.append(sorted(p.name for p in models().glob("[!.]*")))
            (item.out / "model.safetensors").write_bytes(b"x" * 10)
            if fault := self.fail_on.pop(name, None):
                if not isinstance(fault, BuildError):
                    raise fault
                hear(Event(variant=name, state="failed", detail=str(fault)))
                continue
            for folder in filter(None, (item.out, item.twin)):
                (folder / "config.json").write_text("{}")
                twin = {"twin_of": {"variant": name}} if folder == item.twin else {}
                record = RECORD | {"variant": name} | twin
                (folder / QUANTIZE_JSON).write_text(json.dumps(record))
            hear(Event(variant=name, state="made"))


def models():
    return cache_dir() / "models"


class FakeGate:
    """Answers with `results` (a pass unless said otherwise), and records what it judged."""

    def __init__(self):
        self.judged = []
        self.candidates = []
        self.results = {}
        self.fail_on = set()

    def __call__(self, variants, judged):
        for name in variants:
            if name in self.fail_on:
                raise BuildError(f"the engine died on {name}")
            self.judged.append(name)
            self.candidates.append(variants[name])
            judged(name, self.results.get(name, PASS))
