"""Text for the quantizers to measure activations on: the reference corpus, or a JSONL file."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.domain.errors import BuildError, ConfigError
from serve_app.quantize.recipes import Calibration
from serve_app.reference.corpus import Exchange, calibration_exchanges, corpus_digest

Encode = Callable[[str | list[dict[str, str]]], list[int]]
"""Tokens of a plain text, or of messages as the model's chat template renders them."""


@dataclass(frozen=True)
class Source:
    """Where the text is from. `sha256`: of the file, or of the corpus by content."""

    name: str
    sha256: str
    texts: Sequence[str | list[dict[str, str]]]


def reference_source() -> Source:
    """Seen exchanges of the reference corpus."""
    texts = [as_messages(each) for each in calibration_exchanges()]
    return Source("reference corpus", corpus_digest(), texts)


def file_source(path: Path) -> Source:
    """A JSONL file: each line an object with `text`, or with `messages` (role and content).

    Raises `ConfigError` that names the first line that is neither.
    """
    try:
        content = path.read_bytes()
        lines = content.decode().split("\n")  # splitlines would cut at U+2028 inside a string
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the calibration file {path}: {error}") from None
    texts = [_text(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not texts:
        raise ConfigError(f"{path} has no calibration text: need one JSON object per line")
    return Source(str(path), hashlib.sha256(content).hexdigest(), texts)


def as_messages(exchange: Exchange) -> list[dict[str, str]]:
    """The exchange as chat templates take it."""
    return [
        {"role": "user", "content": exchange.request},
        {"role": "assistant", "content": exchange.answer},
    ]


def calibration_rows(wanted: Calibration, source: Source, encode: Encode) -> list[list[int]]:
    """`samples` rows of exactly `length_tokens` tokens, cut from the texts one after another.

    Raises `BuildError` if there is too little text.
    """
    size, samples = wanted.length_tokens, wanted.samples
    stream: list[int] = []
    for text in source.texts:
        if len(stream) >= size * samples:
            break
        stream += encode(text)
    if len(stream) < size * samples:
        raise BuildError(
            f"calibrating on {samples} rows of {size} tokens needs {size * samples} tokens, "
            f"{source.name} gives {len(stream)}: lower calibration.samples, or give more text"
        )
    return [stream[i * size : (i + 1) * size] for i in range(samples)]


def rows_digest(rows: Sequence[Sequence[int]]) -> str:
    """SHA-256 (hex) of the tokens that were really used."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


def _text(path: Path, number: int, line: str) -> str | list[dict[str, str]]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{number} is not JSON: {error}") from None
    if isinstance(row, dict):
        text, messages = row.get("text"), row.get("messages")
        if isinstance(text, str) and text:
            return text
        if isinstance(messages, list) and messages and all(_is_message(each) for each in messages):
            return messages
    raise ConfigError(
        f'{path}:{number}: need {{"text": "..."}} or '
        '{"messages": [{"role": "user", "content": "..."}, ...]}'
    )


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )
