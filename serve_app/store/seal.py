"""What a variant that QuanTile made must bring along before it is served: a gate that it passed.

Whoever makes a variant leaves `quantile.json`, `manifest.json` and, once an engine was seen to
compute what the weights say, `gate.json`, which names the manifest that it judged. Checkpoints from
elsewhere have none of these, and are taken as they are.
"""

from pathlib import Path
from typing import Any

import msgspec

from serve_app.domain.errors import CheckpointError
from serve_app.reference.locate import QUANTIZE_JSON
from serve_app.store.manifest import GATE_JSON, Manifest, read_manifest, verify


class GateFile(msgspec.Struct, frozen=True):
    """`gate.json`: the verdict on one manifest. `key`: the limits and the engine that judged."""

    manifest_sha256: str
    passed: bool
    result: dict[str, Any]
    key: dict[str, Any]
    judged: str = "itself"
    """`itself`, or `twin`: as dense weights, where no engine here has the format's kernels."""
    schema_version: int = 2


def read_gate(folder: Path) -> GateFile | None:
    """The folder's verdict, None where there is none or only an older schema's."""
    try:
        found = msgspec.json.decode((folder / GATE_JSON).read_bytes(), type=GateFile)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return found if found.schema_version == GateFile.__struct_defaults__[-1] else None


def require_sealed(folder: Path, *, is_verified: bool = False) -> None:
    """Raise `CheckpointError` if a variant of ours was not judged, failed, or was changed since.

    Reads every file once, unless whoever calls has just done so (`is_verified`).
    """
    folder = folder.parent if folder.is_file() else folder  # a GGUF may be named by its file
    if not (folder / QUANTIZE_JSON).is_file():
        return
    manifest = read_manifest(folder)
    if manifest is None:
        raise CheckpointError(
            f"{folder} has {QUANTIZE_JSON} but no manifest.json: it was not finished, or not "
            "copied whole; make it again"
        )
    _require_passed(folder, manifest)
    if not is_verified:
        verify(folder, manifest)


def _require_passed(folder: Path, manifest: Manifest) -> None:
    gate = read_gate(folder)
    judge_it = f"judge it: `quantile gate {folder}`"
    if gate is None:
        raise CheckpointError(f"{folder} has not passed the correctness gate; {judge_it}")
    if not gate.passed:
        why = "; ".join(map(str, gate.result.get("failures", [])))
        raise CheckpointError(
            f"{folder} failed the correctness gate and is not served: {why}; make it again"
        )
    if gate.judged == "twin" and not _is_twin(folder):
        raise CheckpointError(
            f"{folder} was judged as its dense twin only: serve the twin, or, where an engine runs "
            f"the format, {judge_it}"
        )
    if gate.manifest_sha256 != manifest.digest():
        raise CheckpointError(f"{folder} is not what the correctness gate judged; {judge_it}")


def _is_twin(folder: Path) -> bool:
    record = msgspec.json.decode((folder / QUANTIZE_JSON).read_bytes())
    return isinstance(record, dict) and "twin_of" in record
