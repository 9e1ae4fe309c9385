"""Readers of published traces, as their repositories write them.

azure     github.com/Azure/AzurePublicDataset: AzureLLMInferenceTrace_{code,conv}.csv of 2023
          (`2023-11-16 18:17:03.9799600`) and ..._1week.csv of 2024 (`2024-05-10
          00:00:00.009930+00:00`)
burstgpt  github.com/HPMLL/BurstGPT: BurstGPT_*.csv, in seconds that need not begin at 0; from the
          third file on with session ids, which are empty for API calls
mooncake  github.com/kvcache-ai/Mooncake, FAST25-release: *.jsonl, in milliseconds; requests that
          begin with the same `hash_ids` begin with the same text, in blocks of 512 tokens
"""

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import msgspec

from loadtests.campaign.stages import TraceFormat
from serve_app.domain.errors import ConfigError

BLOCK_TOKENS = 512
"""Tokens of one of Mooncake's blocks."""
MOST_TOKENS = 2_000_000
"""Of a prompt or an answer: what is longer is a mistake in the file, and no model takes it."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace."""

    at_s: float
    """Since the first request of the trace."""
    input_tokens: int
    output_tokens: int
    """0: the request failed when the trace was recorded."""
    hash_ids: tuple[int, ...] = ()
    """Blocks of the prompt; empty where the trace does not know them."""
    session: str | None = None


def read_trace(trace_format: TraceFormat, path: Path) -> Iterator[TraceRow]:
    """The requests of a trace, in its order, which is that of time; reads as far as it is asked.

    Raises ConfigError, with the line, if the file is unreadable, not of that format, or goes back
    in time.
    """
    read = _READERS[trace_format]
    first_s = last_s = -math.inf
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, row in read(path, file):
                if first_s == -math.inf:
                    first_s = row.at_s
                if row.at_s < last_s:
                    raise ConfigError(
                        f"{path}:{line}: need requests in the order of time, have one "
                        f"{last_s - row.at_s:g} s before its predecessor: sort the file"
                    )
                last_s = row.at_s
                yield replace(row, at_s=row.at_s - first_s)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the trace: {error}") from error


def _read_azure(path: Path, file: TextIO) -> Iterator[tuple[int, TraceRow]]:
    def parse(cells: Sequence[str]) -> TraceRow:
        at = datetime.fromisoformat(cells[0])  # cuts the seventh digit of a second
        at = at if at.tzinfo else at.replace(tzinfo=UTC)  # local time would jump in October
        return TraceRow(at.timestamp(), _count(cells[1]), _count(cells[2]))

    return _read_csv(path, file, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), (), parse)


def _read_burstgpt(path: Path, file: TextIO) -> Iterator[tuple[int, TraceRow]]:
    def parse(cells: Sequence[str]) -> TraceRow:
        session = _session(cells[3])
        return TraceRow(_seconds(cells[0]), _count(cells[1]), _count(cells[2]), (), session)

    needed = ("Timestamp", "Request tokens", "Response tokens")
    return _read_csv(path, file, needed, ("Session ID",), parse)


def _read_csv(
    path: Path,
    file: TextIO,
    needed: Sequence[str],
    optional: Sequence[str],
    parse: Callable[[Sequence[str]], TraceRow],
) -> Iterator[tuple[int, TraceRow]]:
    """Line numbers and rows. `parse` gets the needed columns, then the optional ones or ""."""
    lines = _csv_lines(path, file)
    _, header = next(lines, (1, []))
    missing = [name for name in needed if name not in header]
    if missing:
        raise ConfigError(
            f"{path}:1: need the columns {', '.join(needed)}, have {', '.join(header) or 'none'}: "
            f"is `format` right?"
        )
    places = [header.index(name) for name in needed]
    more = [header.index(name) if name in header else None for name in optional]
    for number, cells in lines:
        if not cells:
            continue
        try:
            wanted = [cells[i] for i in places]
            wanted += [cells[i] if i is not None else "" for i in more]
            row = parse(wanted)
        except (ValueError, IndexError) as error:
            raise ConfigError(
                f"{path}:{number}: need {', '.join(needed)}, have {cells}: {error}"
            ) from error
        yield number, row


def _csv_lines(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    lines = csv.reader(file)
    try:
        for cells in lines:
            yield lines.line_num, cells
    except csv.Error as error:  # such as a quote that never ends
        raise ConfigError(f"{path}:{lines.line_num}: need CSV, have else: {error}") from error


class _MooncakeLine(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def _read_mooncake(path: Path, file: TextIO) -> Iterator[tuple[int, TraceRow]]:
    decoder = msgspec.json.Decoder(_MooncakeLine)
    for number, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            line = decoder.decode(text)
            n_blocks = math.ceil(_tokens(line.input_length) / BLOCK_TOKENS)
            if line.hash_ids and len(line.hash_ids) != n_blocks:
                raise ValueError(
                    f"{n_blocks} hash_ids of {BLOCK_TOKENS} tokens make {line.input_length}"
                )
            row = TraceRow(
                line.timestamp / 1000,
                line.input_length,
                _tokens(line.output_length),
                line.hash_ids,
            )
        except (ValueError, msgspec.DecodeError) as error:
            raise ConfigError(
                f"{path}:{number}: need timestamp, input_length, output_length and hash_ids, "
                f"have {text.strip()[:120]}: {error}"
            ) from error
        yield number, row


def _seconds(text: str) -> float:
    seconds = float(text)
    if not math.isfinite(seconds):
        raise ValueError(f"{text} is no time")
    return seconds


def _count(text: str) -> int:
    return _tokens(int(text))


def _tokens(n: int) -> int:
    if not 0 <= n <= MOST_TOKENS:
        raise ValueError(f"need 0 to {MOST_TOKENS:,} tokens, have {n}")
    return n


def _session(text: str) -> str | None:
    """It becomes the value of a header."""
    if not (text.isascii() and text.isprintable()):
        raise ValueError(f"need a session id of printable ASCII, have {text!r}")
    return text or None


_READERS: dict[TraceFormat, Callable[[Path, TextIO], Iterator[tuple[int, TraceRow]]]] = {
    TraceFormat.AZURE: _read_azure,
    TraceFormat.BURSTGPT: _read_burstgpt,
    TraceFormat.MOONCAKE: _read_mooncake,
}
