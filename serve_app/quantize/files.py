"""Whether a checkpoint's files are whole: shards, headers, digests, tokenizer; lists all faults."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from serve_app.domain.errors import CheckpointError
from serve_app.quantize.findings import Finding, error, warning
from serve_app.store.gguf_header import read_gguf_header
from serve_app.store.gguf_tokenizer import require_tokenizer
from serve_app.store.inspect import CheckpointContents, read_checkpoint
from serve_app.store.manifest import MANIFEST_JSON, Advance, Manifest
from serve_app.store.safetensors_header import read_header
from serve_app.store.source import GGUF_SUFFIX, LocalSource, Source

INDEX, CONFIG, SAFETENSORS = "model.safetensors.index.json", "config.json", ".safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""One of these is enough to turn text into tokens."""
_PIECE = 1 << 22
_COPY = "copy it again, whole"


@dataclass(frozen=True)
class Files:
    """What was found; `contents` is None where the checkpoint cannot be described."""

    findings: tuple[Finding, ...]
    contents: CheckpointContents | None


def check_files(
    source: Source, *, hash_files: bool, advance: Advance = lambda n_bytes: None
) -> Files:
    """Look at every file. Weights are read only to hash them: of a folder on this machine that has
    a manifest, if `hash_files`; `advance` is told the bytes.

    Raises CheckpointError when the place cannot be reached at all.
    """
    findings = [*_shards(source), *_headers(source), *_tokenizer(source)]
    if not any(each.severity == "error" for each in findings):
        findings += _digests(source, hash_files, advance)
    try:
        contents = read_checkpoint(source)
    except CheckpointError as fault:
        contents = None
        if not any(each.severity == "error" for each in findings):
            findings.append(error("format", "a checkpoint that QuanTile reads", str(fault), _COPY))
    return Files(tuple(findings), contents)


def bytes_to_hash(source: Source) -> int | None:
    """Bytes that `check_files` would hash; None where there is no manifest, or it is elsewhere."""
    if MANIFEST_JSON not in source.sizes or not isinstance(source, LocalSource):
        return None
    try:
        return _manifest(source).total_bytes
    except (CheckpointError, msgspec.MsgspecError):
        return None


def _shards(source: Source) -> Iterator[Finding]:
    if not source.sizes:
        yield error("files", "a folder with a checkpoint", "no files", "check the path")
        return
    if INDEX not in source.sizes:
        return
    try:
        content = source.read_json(INDEX)
        named = sorted(set(dict(content["weight_map"]).values()))
    except (CheckpointError, KeyError, TypeError, ValueError) as fault:
        yield error("index", f"a weight_map in {INDEX}", str(fault), _COPY)
        return
    for name in named:
        if name not in source.sizes:
            yield error("shards", f"{name}, which {INDEX} names", "no such file", _COPY)


def _headers(source: Source) -> Iterator[Finding]:
    for name in sorted(source.sizes):
        try:
            if name.endswith(SAFETENSORS):
                read_header(source, name)
            elif name.endswith(GGUF_SUFFIX):
                read_gguf_header(source, name)
        except CheckpointError as fault:
            yield error("damaged", f"{name} whole", str(fault), _COPY)


def _tokenizer(source: Source) -> Iterator[Finding]:
    if any(name.endswith(SAFETENSORS) for name in source.sizes):
        if not any(name in source.sizes for name in TOKENIZERS):
            have = f"none of {', '.join(TOKENIZERS)}"
            fix = "copy the tokenizer's files of the base model beside the weights"
            yield error("tokenizer", "a tokenizer beside the weights", have, fix)
        return
    ggufs = sorted(name for name in source.sizes if name.endswith(GGUF_SUFFIX))
    for name in ggufs[:1]:
        try:
            require_tokenizer(read_gguf_header(source, name), source.locate(name))
        except CheckpointError as fault:
            if "no tokenizer" in str(fault):
                fix = "convert the model again with its tokenizer.json beside the weights"
                yield error("tokenizer", "a tokenizer in the GGUF", str(fault), fix)


def _manifest(source: Source) -> Manifest:
    raw = source.read(MANIFEST_JSON, 0, source.size(MANIFEST_JSON))
    return msgspec.json.decode(raw, type=Manifest)


def _digests(source: Source, hash_files: bool, advance: Advance) -> Iterator[Finding]:
    if MANIFEST_JSON not in source.sizes:
        return
    fix = f"{_COPY}, or make it again"
    try:
        manifest = _manifest(source)
    except msgspec.MsgspecError as fault:
        yield error("manifest", f"a {MANIFEST_JSON} of files, bytes, sha256", str(fault), fix)
        return
    whole = []
    for name, entry in manifest.files.items():
        size = source.sizes.get(name)
        if size != entry.bytes:
            have = "no such file" if size is None else f"{size:,} bytes"
            yield error("digest", f"{name} with {entry.bytes:,} bytes, as made", have, fix)
        else:
            whole.append(name)
    if hash_files and not isinstance(source, LocalSource):
        have = f"sizes compared only: {source.uri} is not on this machine"
        yield warning("digest", "files with the digests of the manifest", have, "check the copy")
        return
    for name in whole if hash_files else ():
        digest = _sha256(source, name, advance)
        if digest != manifest.files[name].sha256:
            need = f"{name} with SHA-256 {manifest.files[name].sha256[:12]}..."
            yield error("digest", need, f"{digest[:12]}...", fix)


def _sha256(source: Source, name: str, advance: Advance) -> str:
    digest = hashlib.sha256()
    for start in range(0, source.size(name), _PIECE):
        piece = source.read(name, start, _PIECE)
        digest.update(piece)
        advance(len(piece))
    return digest.hexdigest()
