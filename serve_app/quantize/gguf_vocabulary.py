"""The tokenizer of a Hugging Face checkpoint, as GGUF keeps it. Pure; reads `tokenizer.json`'s own
content."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.domain.errors import CheckpointError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""`tokenizer.ggml.token_type` (enum llama_token_type)."""

_LLAMA3 = re.compile(r"\\p\{N\}\{1,3\}")
_QWEN2 = re.compile(r"\|\\p\{N\}\|")
CONVERTER = "convert it with llama.cpp's convert_hf_to_gguf.py and give QuanTile the GGUF"


@dataclass(frozen=True)
class Vocabulary:
    """Byte-level BPE: one entry of `tokens` and `types` per row of the embedding."""

    pre: str
    """How text is cut before merging, by llama.cpp's name."""
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The tokenizer of a checkpoint folder, filled up to the `size` of its embedding.

    Raises CheckpointError when there is none, or one that is not byte-level BPE.
    """
    path = folder / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {path} ({error}): a GGUF holds its tokenizer, so copy the checkpoint "
            "with its tokenizer.json"
        ) from None
    return vocabulary(content, size, str(path))


def vocabulary(content: Mapping[str, Any], size: int, path: str) -> Vocabulary:
    """As `read_vocabulary`, from the content of `tokenizer.json`."""
    model = content.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise CheckpointError(
            f"{path} is {model.get('type')!r}, and QuanTile writes byte-level BPE only: {CONVERTER}"
        )
    added = {int(each["id"]): each for each in content.get("added_tokens") or ()}
    by_id = {int(number): text for text, number in model["vocab"].items()}
    by_id |= {number: each["content"] for number, each in added.items()}
    if max(by_id) >= size:
        raise CheckpointError(
            f"{path} has token {max(by_id)}, and the embedding has {size} rows: the tokenizer "
            "belongs to another model"
        )
    tokens, types = [], []
    for number in range(size):
        text = by_id.get(number)
        tokens.append(f"[PAD{number}]" if text is None else text)
        if text is None:
            types.append(UNUSED)
        elif number in added:
            types.append(CONTROL if added[number].get("special") else USER_DEFINED)
        else:
            types.append(NORMAL)
    merges = tuple(
        pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or ()
    )
    return Vocabulary(pre_tokenizer(content, path), tuple(tokens), tuple(types), merges)


def pre_tokenizer(content: Mapping[str, Any], path: str) -> str:
    """llama.cpp's name for the way the tokenizer cuts text. Raises CheckpointError."""
    if content.get("normalizer") not in (None, {"type": "NFC"}):
        raise CheckpointError(
            f"{path} normalizes text ({content['normalizer'].get('type')}), which llama.cpp's BPE "
            f"does not: {CONVERTER}"
        )
    declared = content.get("pre_tokenizer") or {}
    steps = declared.get("pretokenizers") or [declared]
    kinds = [step.get("type") for step in steps]
    byte_level = steps[-1] if kinds[-1:] == ["ByteLevel"] else None
    if byte_level and not byte_level.get("add_prefix_space"):
        if kinds == ["ByteLevel"] and byte_level.get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
            return "smollm"
        if kinds == ["Split", "ByteLevel"]:
            pattern = str((steps[0].get("pattern") or {}).get("Regex"))
            if _LLAMA3.search(pattern):
                return "llama-bpe"
            if _QWEN2.search(pattern):
                return "qwen2"
    raise CheckpointError(
        f"{path} cuts text in a way that QuanTile does not know ({', '.join(map(str, kinds))}): "
        f"{CONVERTER}"
    )
