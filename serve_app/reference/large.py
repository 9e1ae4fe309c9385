"""A second reference shape, large enough that weights decide the speed; its weights are random.

    <cache>/large/base-<digest12>/              the checkpoint, made on demand in seconds
    <cache>/large/<recipe>-<digest12>/          its variants, by the same recipes

The trained reference model spends its time in Python: what a kernel is worth does not show on it.
This one has the trained one's tokenizer and 182 million random parameters. It shows speed, memory
and loading, and nothing about quality.
"""

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve_app.domain.errors import BuildError
from serve_app.quantize.making import UNFINISHED, Quantize, Report, Wanted, make_all
from serve_app.quantize.recipes import Copy, Recipe
from serve_app.reference.build import CHECKPOINT, variant_digest
from serve_app.reference.locate import cache_dir

LABEL = "random weights: speed and memory only, no quality"
"""Goes wherever a number of this model is shown."""

SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
"""What differs from the trained model's config. Its vocabulary of 1,024 stays: a larger one would
add a head that no recipe quantizes."""

SEED = 180
_TOKENIZER_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_WEIGHTS_CODE = Path(__file__).with_name("large_weights.py")
DIGEST_DIGITS = 12

CARD = f"""---
tags: [quantile, speed-reference]
---
# QuanTile's large reference shape

{{parameters:,}} parameters drawn from a normal distribution (seed {SEED}), in a Llama's shape:
16 layers, hidden size 1,024, feed-forward 2,816, 16 heads of 64 over 4 of keys and values,
vocabulary 1,024. Made by `quantile reference large`.

**The weights are random. Nothing about quality can be read off this model or its variants: not
perplexity, not exact match, not the difference between two quantization methods.** It is there to
measure speed, memory and loading, with forced lengths (`ignore_eos`).
"""


@dataclass(frozen=True)
class Large:
    """The checkpoint's folder, and what its name's digest covers."""

    folder: Path
    digest: str


def large_dir() -> Path:
    """Where the checkpoint and its variants are kept. Not created here."""
    return cache_dir() / "large"


def locate_large(source: Path = CHECKPOINT) -> Large:
    """The folder it has, or will have: nothing is made. `source` gives config and tokenizer."""
    parts = [(source / name).read_bytes() for name in ("config.json", *_TOKENIZER_FILES)]
    parts += [json.dumps([SHAPE, SEED, CARD]).encode(), _WEIGHTS_CODE.read_bytes()]
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    return Large(large_dir() / f"base-{digest[:DIGEST_DIGITS]}", digest)


def ensure_large(source: Path = CHECKPOINT, report: Report = lambda what, state: None) -> Path:
    """The checkpoint's folder, made if it is not there: about 5 s, 365 MB. It appears whole."""
    large = locate_large(source)
    if large.folder.is_dir():
        return large.folder
    with _lock(report):
        if not large.folder.is_dir():
            report("large", "drawing 182 million random weights")
            _make(source, large.folder)
    return large.folder


def ensure_variants(
    recipes: Sequence[Recipe],
    quantize: Quantize,
    *,
    source: Path = CHECKPOINT,
    report: Report = lambda what, state: None,
) -> dict[str, Path]:
    """The folder of each recipe's variant of the large shape; missing ones are made.

    The unquantized variant is the checkpoint itself. No correctness gate runs: it judges by tokens
    that a model is sure of, and random weights are sure of none; the same recipes are judged on the
    trained model. Raises `BuildError` for those that could not be made, after the others are.
    """
    base = ensure_large(source, report)
    digest = locate_large(source).digest
    wanted = [
        Wanted(recipe, large_dir() / f"{recipe.name}-{variant_digest(digest, recipe)}")
        for recipe in recipes
        if not isinstance(recipe.make, Copy)
    ]
    folders = {r.name: base for r in recipes if isinstance(r.make, Copy)}
    with _lock(report):
        missing = [each for each in wanted if not each.is_made]
        faults = make_all(missing, base, quantize, report)
    if faults:
        raise BuildError(
            "variants of the large shape that could not be made:\n  "
            + "\n  ".join(f"{name}: {why}" for name, why in faults.items())
        )
    return folders | {each.recipe.name: each.folder for each in wanted}


def _make(source: Path, folder: Path) -> None:
    from serve_app.reference.large_weights import write_random_weights

    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | SHAPE
    unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    try:
        parameters = write_random_weights(config, SEED, unfinished / "model.safetensors")
        (unfinished / "model.safetensors").chmod(0o644)  # safetensors leaves 0600
        for name in _TOKENIZER_FILES:
            shutil.copyfile(source / name, unfinished / name)
        (unfinished / "README.md").write_text(CARD.format(parameters=parameters), encoding="utf-8")
        (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        unfinished.chmod(0o755)  # mkdtemp gives 0700
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _lock(report: Report) -> Iterator[None]:
    """One at a time per cache; what a killed run left half made is taken away."""
    large_dir().mkdir(parents=True, exist_ok=True)
    path = large_dir() / "make.lock"
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("large", f"waiting for another run to end (it holds {path})")
            fcntl.flock(handle, fcntl.LOCK_EX)
        for leftover in large_dir().glob(UNFINISHED + "*"):
            shutil.rmtree(leftover)
        yield
