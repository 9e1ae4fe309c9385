"""The last verdicts, from the files that `quantile loadtest` and `quantile rollout` write.

They are looked for below one folder, `QUANTILE_REPORTS_DIR`, no deeper than `_DEPTH`, and never in
the loop that serves requests.
"""

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

REPORTS_VARIABLE = "QUANTILE_REPORTS_DIR"
CAMPAIGN_JSON, ROLLOUT_JSON = "report.json", "state.json"
MAX_AGE_S = 10.0
_DEPTH, _MOST_FILES, _MOST_BYTES = 3, 2000, 32 * 1024 * 1024
_MOST_LINES = 12

logger = logging.getLogger("ray.serve")


class _Campaign(msgspec.Struct, frozen=True):
    verdict: str
    status: str
    headlines: tuple[str, ...] = ()


class _Step(msgspec.Struct, frozen=True):
    step: int
    verdict: str
    reason: str


class _Rollout(msgspec.Struct, frozen=True):
    phase: str
    current_bp: dict[str, int]
    started_at: str
    steps: tuple[_Step, ...] = ()


class Reports:
    """The newest campaign and the newest rollout; read at most once in ten seconds."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        folder = environ.get(REPORTS_VARIABLE)
        self._folder = Path(folder) if folder else None
        self._known: dict[str, Any] | None = None
        self._read_s = 0.0

    async def known(self, now_s: float) -> dict[str, Any]:
        """As JSON: `campaign` and `rollout`, null where there is none, and `missing`: why."""
        if self._known is None or now_s - self._read_s >= MAX_AGE_S:
            self._known = await asyncio.to_thread(read_reports, self._folder)
            self._read_s = now_s
        return self._known


def read_reports(folder: Path | None) -> dict[str, Any]:
    """What the folder holds. A file that cannot be read, or is of another kind, is passed over."""
    found: dict[str, Any] = {"campaign": None, "rollout": None, "missing": None}
    if folder is None:
        found["missing"] = (
            f"the router knows no folder of reports: set {REPORTS_VARIABLE} in its environment"
        )
        return found
    if not folder.is_dir():
        found["missing"] = f"{REPORTS_VARIABLE} names {folder}, which is no folder here"
        return found
    files = sorted(_files(folder, _DEPTH), reverse=True)
    for modified_s, path in files:
        if path.name == CAMPAIGN_JSON and found["campaign"] is None:
            found["campaign"] = _campaign(path, modified_s)
        elif path.name == ROLLOUT_JSON and found["rollout"] is None:
            found["rollout"] = _rollout(path, modified_s)
        if found["campaign"] and found["rollout"]:
            break
    return found


def _files(folder: Path, depth: int) -> Iterator[tuple[float, Path]]:
    """Files of the two names, with when they were written."""
    folders = [(folder, depth)]
    n_seen = 0
    while folders and n_seen < _MOST_FILES:
        here, left = folders.pop()
        try:
            entries = list(os.scandir(here))
        except OSError:
            continue
        for entry in entries:
            n_seen += 1
            if entry.name in (CAMPAIGN_JSON, ROLLOUT_JSON):
                try:
                    stat = entry.stat()
                except OSError:
                    continue
                if stat.st_size <= _MOST_BYTES:
                    yield stat.st_mtime, Path(entry.path)
            elif left and entry.is_dir(follow_symlinks=False):
                folders.append((Path(entry.path), left - 1))


def _campaign(path: Path, modified_s: float) -> dict[str, Any] | None:
    read = _decoded(path, _Campaign)
    return read and {
        "name": path.parent.name,
        "written_epoch_s": modified_s,
        "verdict": read.verdict,
        "lines": [read.status, *read.headlines][:_MOST_LINES],
    }


def _rollout(path: Path, modified_s: float) -> dict[str, Any] | None:
    read = _decoded(path, _Rollout)
    return read and {
        "name": path.parent.name,
        "written_epoch_s": modified_s,
        "verdict": read.phase,
        "lines": [f"Step {each.step + 1}: {each.verdict}: {each.reason}" for each in read.steps][
            -_MOST_LINES:
        ],
        "split": read.current_bp,
    }


def _decoded(path: Path, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
