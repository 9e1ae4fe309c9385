"""Checkpoints in S3 and on the Hugging Face Hub, read over real sockets without their weights."""

import json
import os
import socket
import subprocess
import sys

import pytest
from botocore.exceptions import ClientError

from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import QuantMethod
from serve_app.domain.units import GIB, KIB, MIB
from serve_app.store import s3 as s3_module
from serve_app.store.facts import checkpoint_facts
from serve_app.store.hub import HubSource
from serve_app.store.inspect import inspect_checkpoint
from serve_app.store.safetensors_header import FIRST_READ_BYTES
from serve_app.store.source import open_source
from tests.fakes import checkpoints as made
from tests.fakes.checkpoints import write_checkpoint, write_safetensors
from tests.fakes.gguf_files import Q4_K_M, n_bytes, write_gguf
from tests.fakes.hub import COMMIT, FakeHub
from tests.fakes.llama_70b import N_PARAMETERS, SHARDS, write_llama_70b
from tests.fakes.s3 import (
    BUCKET,
    account,
    client,
    forget_this_machine,
    log_in,
    read_only,
    with_authorization,
)


def refused(read, *said):
    with pytest.raises(CheckpointError) as caught:
        read()
    for part in said:
        assert part in str(caught.value)
    assert "Traceback" not in str(caught.value)


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def plain_environment(monkeypatch, tmp_path):
    forget_this_machine(monkeypatch, tmp_path)


@pytest.fixture
def s3(monkeypatch, tmp_path):
    with account(monkeypatch, tmp_path) as store:
        yield store


def upload(folder, prefix):
    s3 = client("s3")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        s3.upload_file(str(path), BUCKET, f"{prefix}{path.relative_to(folder)}")


class TestS3:
    """`s3://bucket/prefix`, through boto3."""

    def test_only_headers_are_fetched_of_many_shards(self, s3, tmp_path):
        shards = [f"model-{number:05}-of-00024.safetensors" for number in range(1, 25)]
        weight_map = {}
        for number, shard in enumerate(shards):
            name = f"model.layers.{number}.mlp.up_proj.weight"
            write_safetensors(tmp_path / shard, {name: ("BF16", [1024, 2048])})
            weight_map[name] = shard
        (tmp_path / "config.json").write_text('{"max_position_embeddings": 8192}')
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        upload(tmp_path, "llama/fp16/")
        s3.forget()
        checkpoint = inspect_checkpoint(open_source(f"s3://{BUCKET}/llama/fp16"))
        assert checkpoint.weight_bytes == 24 * 4 * MIB
        assert checkpoint.uri == f"s3://{BUCKET}/llama/fp16"
        assert checkpoint.describe() == "unquantized bfloat16"
        listing, *reads = s3.requests
        assert listing == ("GET", f"/{BUCKET}")
        assert sorted(path.rsplit("/", 1)[1] for _, path in reads) == sorted(
            ["config.json", index.name, *shards]
        )
        assert 24 * FIRST_READ_BYTES < s3.sent_bytes < 1.02 * 24 * FIRST_READ_BYTES

    @pytest.mark.parametrize("uri", ["s3://models/a/b", "s3://models/a/b/", "s3://models"])
    def test_forms_of_a_prefix(self, s3, tmp_path, uri):
        write_checkpoint(tmp_path, made.NATIVE_PACKED, made.GPTQ)
        upload(tmp_path, "a/b/" if "/a" in uri else "")
        upload(tmp_path, "a/bystander/")
        upload(tmp_path, "a/b/original/")
        source = open_source(uri)
        assert set(source.sizes) == {"config.json", "model.safetensors"}
        assert inspect_checkpoint(source).scheme.method is QuantMethod.GPTQ

    def test_a_listing_of_several_pages(self, s3, tmp_path, monkeypatch):
        write_checkpoint(tmp_path, made.PLAIN)
        for number in range(5):
            (tmp_path / f"extra-{number}.txt").write_text("x")
        upload(tmp_path, "a/")
        monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
        s3.forget()
        assert len(open_source(f"s3://{BUCKET}/a").sizes) == 7
        assert len(s3.requests) == 4

    def test_a_folder_that_a_console_made_is_no_file(self, s3):
        client("s3").put_object(Bucket=BUCKET, Key="a/", Body=b"")
        assert dict(open_source(f"s3://{BUCKET}/a").sizes) == {}

    def test_a_gguf_file(self, s3, tmp_path):
        write_gguf(tmp_path / "m-Q4_K_M.gguf")
        write_gguf(tmp_path / "m-Q8_0.gguf")
        upload(tmp_path, "a/")
        uri = f"s3://{BUCKET}/a/m-Q4_K_M.gguf"
        facts = checkpoint_facts(uri)
        assert facts.uri == uri
        assert facts.weights.head_bytes == n_bytes(*Q4_K_M["output.weight"])
        refused(lambda: checkpoint_facts(f"s3://{BUCKET}/a"), "2 GGUF files", uri)

    def test_a_store_that_ignores_ranges(self, s3, tmp_path):
        tensors = {f"layers.{n}.{'x' * 100}": ("BF16", [64]) for n in range(1000)}
        write_checkpoint(tmp_path, tensors)
        upload(tmp_path, "a/")
        s3.knows_ranges = False
        assert inspect_checkpoint(open_source(f"s3://{BUCKET}/a")).weight_bytes == 128_000

    def test_rights_to_list_and_to_read_are_enough(self, s3, tmp_path, monkeypatch):
        write_checkpoint(tmp_path, made.PLAIN)
        upload(tmp_path, "a/")
        read_only(monkeypatch, ["s3:ListBucket", "s3:GetObject"])
        with_authorization(lambda: inspect_checkpoint(open_source(f"s3://{BUCKET}/a")))
        with pytest.raises(ClientError, match="AccessDenied"):
            with_authorization(
                lambda: client("s3").delete_object(Bucket=BUCKET, Key="a/config.json")
            )


class TestS3Refusals:
    """Each error says what to change."""

    URI = f"s3://{BUCKET}/a"

    def test_no_such_bucket(self, s3):
        refused(lambda: open_source("s3://nobody/a").sizes, "s3://nobody/a", "no such bucket")

    def test_an_empty_prefix(self, s3):
        refused(
            lambda: inspect_checkpoint(open_source(self.URI)),
            f"{self.URI}/config.json is missing",
            "check the checkpoint's path",
        )

    def test_no_credentials(self, s3, monkeypatch):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        refused(lambda: open_source(self.URI).sizes, "no credentials", "set AWS_ACCESS_KEY_ID")

    def test_half_of_the_credentials(self, s3, monkeypatch):
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        refused(lambda: open_source(self.URI).sizes, "no credentials", "AWS_SECRET_ACCESS_KEY")

    def test_credentials_that_nobody_knows(self, s3):
        refused(
            lambda: with_authorization(lambda: open_source(self.URI).sizes),
            "credentials are unknown there",
        )

    def test_a_wrong_secret(self, s3, monkeypatch):
        read_only(monkeypatch, ["s3:ListBucket"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        refused(
            lambda: with_authorization(lambda: open_source(self.URI).sizes),
            "the secret key is wrong",
        )

    def test_no_right_to_list(self, s3, monkeypatch):
        read_only(monkeypatch, ["s3:GetObject"])
        refused(
            lambda: with_authorization(lambda: open_source(self.URI).sizes),
            "access denied",
            "s3:ListBucket",
        )

    def test_no_right_to_read(self, s3, tmp_path, monkeypatch):
        write_checkpoint(tmp_path, made.PLAIN)
        upload(tmp_path, "a/")
        read_only(monkeypatch, ["s3:ListBucket"])
        refused(
            lambda: with_authorization(lambda: inspect_checkpoint(open_source(self.URI))),
            f"{self.URI}/config.json",
            "access denied",
            "s3:GetObject",
        )

    @pytest.mark.parametrize("endpoint", ["http://127.0.0.1:{}", "localhost"])
    def test_an_endpoint_that_is_none(self, plain_environment, monkeypatch, endpoint):
        monkeypatch.setattr(s3_module, "ATTEMPTS", 1)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.format(closed_port()))
        log_in(monkeypatch, "a", "b")
        refused(lambda: open_source(self.URI).sizes, self.URI, "AWS_ENDPOINT_URL")

    def test_a_connection_that_breaks(self, s3, tmp_path):
        write_checkpoint(tmp_path, made.PLAIN)
        upload(tmp_path, "a/")
        source = open_source(self.URI)
        assert source.sizes
        s3.cuts_bodies = True
        refused(lambda: inspect_checkpoint(source), f"{self.URI}/config.json", "try again")

    def test_a_file_that_is_cut_short(self, s3, tmp_path):
        file = write_checkpoint(tmp_path, made.PLAIN) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        upload(tmp_path, "a/")
        refused(
            lambda: inspect_checkpoint(open_source(self.URI)),
            f"{self.URI}/model.safetensors",
            "cut short",
        )


@pytest.fixture
def hub(plain_environment, tmp_path):
    with FakeHub(tmp_path) as server:
        yield server


class TestHub:
    """`hf://owner/name`, through huggingface_hub."""

    def test_a_70b_model_costs_a_few_megabytes(self, hub, tmp_path):
        write_llama_70b(tmp_path / "meta-llama" / "Llama-3.1-70B")
        facts = checkpoint_facts(HubSource("hf://meta-llama/Llama-3.1-70B", hub.url))
        assert facts.uri == "hf://meta-llama/Llama-3.1-70B"
        assert facts.shape.n_layers == 80
        assert facts.weights.linear_bytes == 2 * 80 * 855_638_016
        weights_bytes = sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors"))
        assert weights_bytes > 2 * N_PARAMETERS > 131 * GIB
        assert hub.state.sent_bytes < SHARDS * FIRST_READ_BYTES + 100 * KIB
        assert len(hub.state.requests) == 1 + 2 + SHARDS  # what there is, two JSON files, headers

    @pytest.mark.parametrize("revision", ["", "@main", "@refs/pr/1", f"@{COMMIT}"])
    def test_revisions(self, hub, tmp_path, revision):
        write_checkpoint(tmp_path / "acme" / "m", made.INT8, made.CT_W8A8)
        checkpoint = inspect_checkpoint(HubSource(f"hf://acme/m{revision}", hub.url))
        assert checkpoint.scheme.method is QuantMethod.INT8_W8A8
        asked, *reads = [path for path, _ in hub.state.requests]
        wanted = revision.removeprefix("@").replace("/", "%2F")
        assert asked.startswith(f"/api/models/acme/m{f'/revision/{wanted}' if wanted else ''}?")
        assert all(f"/resolve/{COMMIT}/" in path for path in reads)

    def test_a_folder_of_a_repository(self, hub, tmp_path):
        write_gguf(tmp_path / "acme" / "m" / "Q4_K_M" / "m.gguf")
        write_checkpoint(tmp_path / "acme" / "m", made.PLAIN)
        source = HubSource("hf://acme/m/Q4_K_M", hub.url)
        assert set(source.sizes) == {"m.gguf"}
        assert inspect_checkpoint(source).scheme.method is QuantMethod.GGUF
        assert HubSource("hf://acme/m/Q4", hub.url).sizes == {}

    def test_files_in_a_store_of_their_own_get_no_token(self, hub, tmp_path, monkeypatch):
        write_checkpoint(tmp_path / "acme" / "m", made.PLAIN)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        hub.state.token = "hf_secret"
        with FakeHub(tmp_path) as store:
            hub.state.redirects_to = store.url.replace("127.0.0.1", "localhost")
            checkpoint = inspect_checkpoint(HubSource("hf://acme/m", hub.url))
            assert checkpoint.describe() == "unquantized bfloat16"
            ((path, headers),) = store.state.requests
        assert path == "/store/acme/m/model.safetensors"
        assert "Range" in headers
        assert "Authorization" not in headers

    def test_a_server_that_ignores_ranges(self, hub, tmp_path):
        folder = tmp_path / "acme" / "m"
        tensors = {f"layers.{n}.{'x' * 100}": ("BF16", [64]) for n in range(1000)}
        write_checkpoint(folder, {**tensors, "big": ("BF16", [64, MIB])})
        hub.state.knows_ranges = False
        inspect_checkpoint(HubSource("hf://acme/m", hub.url))
        assert (folder / "model.safetensors").stat().st_size > 128 * MIB
        assert hub.state.sent_bytes < 32 * MIB  # what the sockets hold before we hang up

    def test_a_server_that_fails_for_a_moment(self, hub, tmp_path, monkeypatch):
        write_checkpoint(tmp_path / "acme" / "m", made.PLAIN)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        hub.state.failures = 2
        assert inspect_checkpoint(HubSource("hf://acme/m", hub.url)).weight_bytes

    def test_its_address_and_token_come_from_the_environment(self, hub, tmp_path):
        write_checkpoint(tmp_path / "acme" / "m", made.PLAIN)
        write_gguf(tmp_path / "acme" / "m" / "m-Q4_K_M.gguf")
        hub.state.token = "hf_right"
        code = (
            "from serve_app.store.inspect import inspect_checkpoint as look\n"
            "from serve_app.store.source import open_source\n"
            "for uri in 'hf://acme/m', 'hf://acme/m@main/m-Q4_K_M.gguf':\n"
            "    print(look(open_source(uri)).describe())\n"
        )
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_right"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        assert done.stderr == ""
        assert done.stdout.splitlines() == ["unquantized bfloat16", "gguf W4A16 (gguf)"]


class TestHubRefusals:
    """Each error says what to change."""

    @pytest.fixture(autouse=True)
    def repository(self, hub, tmp_path, monkeypatch):
        write_checkpoint(tmp_path / "acme" / "m", made.PLAIN)
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        self.hub = hub

    def refused(self, *said, uri="hf://acme/m"):
        refused(lambda: inspect_checkpoint(HubSource(uri, self.hub.url)), uri, *said)

    def test_a_gated_repository(self):
        self.hub.state.gated, self.hub.state.token = True, "hf_right"
        self.refused("config.json", "gated", f"ask for access at {self.hub.url}/acme/m", "HF_TOKEN")

    def test_no_such_repository(self):
        self.refused("there is no", "or it is private", "set HF_TOKEN", uri="hf://acme/none")

    def test_a_private_repository(self):
        self.hub.state.private, self.hub.state.token = True, "hf_right"
        self.refused("or it is private", "set HF_TOKEN")

    def test_a_token_that_is_not_valid(self):
        self.hub.state.token = "hf_right"
        self.refused("access denied (401)", "check HF_TOKEN")

    def test_no_such_revision(self):
        self.refused("no revision 'v9'", "/acme/m/commits/main", uri="hf://acme/m@v9")

    def test_a_file_that_is_gone(self, tmp_path):
        source = HubSource("hf://acme/m", self.hub.url)
        assert source.sizes
        (tmp_path / "acme" / "m" / "config.json").unlink()
        refused(lambda: source.read_json("config.json"), "hf://acme/m/config.json", "no such file")

    def test_a_server_that_keeps_failing(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        self.hub.state.failures = 99
        self.refused("answered 503", "try again")

    def test_a_connection_that_breaks(self):
        self.hub.state.broken_after = 10
        self.refused("config.json", "does not answer", "check the network and HF_ENDPOINT")

    def test_nobody_there(self):
        url = f"http://127.0.0.1:{closed_port()}"
        refused(
            lambda: inspect_checkpoint(HubSource("hf://acme/m", url)),
            f"{url} does not answer",
            "check the network and HF_ENDPOINT",
        )

    def test_offline(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        self.refused("HF_HUB_OFFLINE is set")

    def test_several_gguf_files(self, tmp_path):
        for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
            write_gguf(tmp_path / "acme" / "g" / name)
        self.refused("2 GGUF files", "hf://acme/g/m-Q4_K_M.gguf", uri="hf://acme/g")
