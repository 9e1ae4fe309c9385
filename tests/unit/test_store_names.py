"""Names of variants in S3, the records beside them, and what is copied of a folder."""

import logging

import msgspec
import pytest

from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.store.fetch import require_immutable
from serve_app.store.manifest import (
    FileEntry,
    Manifest,
    decode_manifest,
    encode_manifest,
    list_files,
    read_manifest,
    write_manifest,
)
from serve_app.store.place import S3Place, s3_place
from serve_app.store.progress import LogProgress
from serve_app.store.pull import Remote, worth_copying
from serve_app.store.stored import (
    StoredVariant,
    decode_record,
    encode_record,
    stored_files,
)

D = "0123456789abcdef" * 4
MANIFEST = Manifest({"config.json": FileEntry(2, "a" * 64)})
RECORD = StoredVariant(
    digest=MANIFEST.digest(),
    total_bytes=2,
    scheme=QuantScheme(QuantMethod.GPTQ, bits=4, group_size=128, container="gptq"),
    companions={"README.md": FileEntry(5, "b" * 64)},
    pushed_unix_s=1,
)


class TestPlace:
    @pytest.mark.parametrize(
        ("uri", "place"),
        [
            ("s3://b", S3Place("b", "")),
            ("s3://b/", S3Place("b", "")),
            ("s3://b/x/y", S3Place("b", "x/y/")),
            ("s3://b/x/y/", S3Place("b", "x/y/")),
            (f"s3://b/x/y@{D}", S3Place("b", "x/y/", D)),
            (f"s3://b/x/y@{D}/", S3Place("b", "x/y/", D)),
            (f"s3://b/@{D}", S3Place("b", "", D)),
            ("s3://b/x@home", S3Place("b", "x@home/")),
        ],
    )
    def test_forms(self, uri, place):
        assert s3_place(uri) == place

    def test_a_variant_has_a_folder_of_its_own(self):
        place = s3_place("s3://b/llama/gptq").at(D)
        assert place.folder == f"llama/gptq/{D}/"
        assert place.uri == f"s3://b/llama/gptq@{D}"
        assert s3_place(place.uri) == place
        assert place.short == "s3://b/llama/gptq@0123456789ab"

    @pytest.mark.parametrize(
        ("uri", "said"),
        [
            ("s3://", "names no bucket"),
            ("s3:///x", "names no bucket"),
            (f"s3://b@{D}", "names no bucket"),
            ("s3://b/x@0123abcd", "digest of 8 characters: need all 64"),
            (f"s3://b/x@{D}0", "digest of 65 characters"),
        ],
    )
    def test_refusals(self, uri, said):
        with pytest.raises(CheckpointError, match=said):
            s3_place(uri)

    def test_what_is_served_is_named_by_its_digest(self):
        require_immutable(f"s3://b/x@{D}")
        require_immutable("hf://owner/name@main")
        with pytest.raises(CheckpointError, match=r"need s3://b/x@<digest>; `quantile store list"):
            require_immutable("s3://b/x/")

    @pytest.mark.parametrize("uri", ["/models/x", "reference://gptq", "file:///x"])
    def test_only_stores_are_pulled_from(self, uri):
        with pytest.raises(CheckpointError, match="need s3://bucket/prefix@<digest> or hf://"):
            Remote(uri)


class TestManifest:
    def test_digests_of_existing_variants_stay(self):
        """Written by the first version of the schema; variants in buckets are named by it."""
        raw = b'{"files":{"config.json":{"bytes":2,"sha256":"%s"}},"schema_version":1}' % (
            b"a" * 64
        )
        assert decode_manifest(raw, "x") == MANIFEST
        assert MANIFEST.digest() == (
            "46be6630c28b4747ca0fdcb611df1d4862e2aad6a2b600e86e8f22847546fdc8"
        )

    def test_it_lists_what_an_engine_may_read(self, tmp_path):
        for name in ("config.json", "README.md", "gate.json", ".gitattributes"):
            (tmp_path / name).write_text("{}")
        (tmp_path / "original").mkdir()
        assert set(list_files(tmp_path).files) == {"config.json"}
        written = write_manifest(tmp_path)
        assert read_manifest(tmp_path) == written
        assert list_files(tmp_path) == written

    @pytest.mark.parametrize("raw", [b"", b"[]", b'{"files":{"x":1}}', b"\xff"])
    def test_damage(self, raw):
        with pytest.raises(CheckpointError, match=r"s3://b/manifest\.json is not a manifest"):
            decode_manifest(raw, "s3://b/manifest.json")

    def test_a_newer_schema_is_not_guessed_at(self):
        newer = Manifest(MANIFEST.files, schema_version=2)
        with pytest.raises(CheckpointError, match="has schema 2, this QuanTile reads up to 1"):
            decode_manifest(encode_manifest(newer), "x")


class TestRecord:
    def test_round_trip(self):
        assert decode_record(encode_record(RECORD), "x") == RECORD
        assert RECORD.card == "README.md"
        assert msgspec.structs.replace(RECORD, companions={}).card is None

    def test_a_newer_schema_is_not_guessed_at(self):
        raw = b'{"schema_version": 7, "something": "else"}'
        with pytest.raises(CheckpointError, match="has schema 7, this QuanTile reads up to 1: upd"):
            decode_record(raw, "s3://b/variant.json")

    @pytest.mark.parametrize("raw", [b"", b"{}", b'{"schema_version": 1}', b"\xff"])
    def test_damage(self, raw):
        with pytest.raises(CheckpointError, match="is not the record of a variant"):
            decode_record(raw, "x")

    def test_files_and_companions_together(self):
        digest = MANIFEST.digest()
        found = stored_files(RECORD, encode_manifest(MANIFEST), digest, "s3://b/x")
        assert set(found.files) == {"config.json", "README.md"}

    def test_another_digest_is_refused_with_both(self):
        other = Manifest({"config.json": FileEntry(3, "a" * 64)})
        with pytest.raises(CheckpointError) as caught:
            stored_files(RECORD, encode_manifest(other), RECORD.digest, "s3://b/x")
        assert f"need the digest {RECORD.digest}, have {other.digest()}" in str(caught.value)
        with pytest.raises(CheckpointError, match=f"need the digest {D}"):
            stored_files(RECORD, encode_manifest(MANIFEST), D, "s3://b/x")


@pytest.mark.parametrize(
    ("there", "worth"),
    [
        (["a.safetensors", "b.bin", "c.onnx", "config.json"], ["a.safetensors", "config.json"]),
        (["pytorch_model.bin", "config.json"], ["pytorch_model.bin", "config.json"]),
        (["m.gguf", ".gitattributes", "README.md"], ["m.gguf", "README.md"]),
        ([], []),
    ],
)
def test_what_is_copied(there, worth):
    assert worth_copying(dict.fromkeys(there, 1)) == worth


def test_a_log_tells_share_and_speed_now_and_then(caplog):
    logger = logging.getLogger("test.store")
    now_s = [0.0]
    advance = LogProgress(logger, every_s=10, clock=lambda: now_s[0]).moving("m", 100 << 20)
    with caplog.at_level(logging.INFO, "test.store"):
        for at_s, mib in ((1.0, 10), (11.0, 40), (12.0, 10), (13.0, 40)):
            now_s[0] = at_s
            advance(mib << 20)
    assert [record.getMessage() for record in caplog.records] == [
        "m: 50.0 MiB of 100 MiB (50 %), 4.55 MiB/s",
        "m: 100 MiB of 100 MiB (100 %), 25.0 MiB/s",
    ]
