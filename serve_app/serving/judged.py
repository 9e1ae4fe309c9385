"""Whether the gate judged a variant of ours where this replica runs it."""

import logging
from pathlib import Path

from serve_app.config.schema import EngineSettings, VariantArgs
from serve_app.domain.errors import CheckpointError
from serve_app.quantize.setting import setting_here
from serve_app.store.fetch import gate_in
from serve_app.store.manifest import read_manifest
from serve_app.store.s3 import S3Source
from serve_app.store.seal import (
    GateFile,
    Setting,
    is_ours,
    is_twin,
    read_gate,
    require_judged,
)
from serve_app.store.source import S3

logger = logging.getLogger("ray.serve")


def setting_of(engine: EngineSettings) -> Setting:
    """Where this process would run the engine. Raises `EngineError`, `ConfigError`."""
    return setting_here(engine.kind, engine.dtype)


def require_judged_here(args: VariantArgs, folder: Path) -> None:
    """Raise `CheckpointError` unless a variant of ours passed with this engine and dtype on this
    kind of machine.

    Another version of the engine is only warned of: an upgrade must not take down what it replaces.
    Reads no weights: `require_sealed` has held them against the manifest.
    """
    folder = folder.parent if folder.is_file() else folder  # a GGUF may be named by its file
    if args.engine.kind == "fake" or not is_ours(folder):
        return
    setting, manifest = setting_of(args.engine), read_manifest(folder)
    if manifest is None:
        raise CheckpointError(f"{folder} has no manifest.json: make it again")
    gate = _gate(args.checkpoint, folder, setting)
    found = require_judged(gate, str(folder), manifest.digest(), setting, is_twin=is_twin(folder))
    if found.setting.version != setting.version:
        logger.warning(
            "%s: the correctness gate judged it with %s, this is %s: judge it again, "
            "`quantile gate %s`",
            args.name,
            found.setting.version,
            setting.version,
            folder,
        )


def _gate(uri: str, folder: Path, setting: Setting) -> GateFile | None:
    """The node's own copy, or, if it says nothing of this setting, what lies in S3 by now."""
    gate = read_gate(folder)
    if uri.startswith(S3) and (gate is None or gate.about(setting) is None):
        return gate_in(S3Source(uri)) or gate
    return gate
