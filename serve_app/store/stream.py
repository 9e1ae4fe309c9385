"""Weights straight from S3 into the engine, by vLLM's own loader: `load_format: runai_streamer`.

Nothing passes through this node's disk, and nothing of ours sees the bytes: they are as good as the
connection and the bucket. vLLM lists the folder, so the right to read alone is not enough. What is
checked here is what can be: the record, the manifest and the gate's verdict belong to the digest.
"""

import importlib.util
import os
from collections.abc import Callable

from serve_app.domain.errors import CheckpointError, ConfigError
from serve_app.reference.locate import QUANTIZE_JSON
from serve_app.store.fetch import gate_in
from serve_app.store.s3 import S3Source
from serve_app.store.seal import Setting, require_judged
from serve_app.store.source import S3

LOAD_FORMAT = "runai_streamer"
_PACKAGES = ("runai_model_streamer", "runai_model_streamer_s3")
_ENDPOINT = "RUNAI_STREAMER_S3_ENDPOINT"


def is_streamed(uri: str, engine_args: dict[str, object]) -> bool:
    """Whether the configuration asks for it."""
    return uri.startswith(S3) and engine_args.get("load_format") == LOAD_FORMAT


def stream_uri(uri: str, setting: Callable[[], Setting]) -> str:
    """The folder to give vLLM as its model, for a variant that may be streamed.

    `setting` says where the engine will run, and is asked for variants of ours. Raises ConfigError
    where the loader's packages are missing, CheckpointError for a variant without safetensors, or
    of ours that did not pass its gate there. Sets the loader's endpoint in the
    environment from AWS_ENDPOINT_URL.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"load_format: {LOAD_FORMAT} needs the package {missing[0].replace('_', '-')}, which "
            "is not installed: `pip install 'runai-model-streamer[s3]'`, or leave load_format out "
            "and have the checkpoint downloaded and verified"
        )
    source = S3Source(uri)
    digest = source.place.digest
    if digest is None:
        raise CheckpointError(f"{uri} may change while replicas come and go: name its digest")
    if not any(name.endswith(".safetensors") for name in source.sizes):
        raise CheckpointError(
            f"{uri} has no safetensors, which is all that {LOAD_FORMAT} reads: leave load_format "
            "out"
        )
    if QUANTIZE_JSON in source.sizes:
        require_judged(gate_in(source), uri, digest, setting())
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        os.environ.setdefault(_ENDPOINT, endpoint)
    return f"{S3}{source.place.bucket}/{source.place.folder}".rstrip("/")
