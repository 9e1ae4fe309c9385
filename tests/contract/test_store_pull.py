"""The model store over real HTTP: moto's S3 behind a proxy that breaks what it is told to break."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from typer.testing import CliRunner

from serve_app.config.parse import parse
from serve_app.config.schema import VariantArgs
from serve_app.domain.errors import CheckpointError, ConfigError, UnreachableError
from serve_app.domain.units import MIB
from serve_app.quantize.setting import setting_here
from serve_app.serving.variant_server import VariantServer, engine_spec, preflight
from serve_app.store import fetch, s3, stream
from serve_app.store.bucket import Bucket
from serve_app.store.cache import STORE_DIR, Cache
from serve_app.store.cli import app
from serve_app.store.manifest import list_files, read_manifest, verify
from serve_app.store.place import s3_place
from serve_app.store.progress import Silent
from serve_app.store.pull import PullSettings, into_cache, into_folder
from serve_app.store.push import push
from serve_app.store.retry import Backoff
from serve_app.store.source import Source
from serve_app.store.stored import VARIANT_JSON
from serve_app.store.transfer import TransferSettings
from tests.fakes import checkpoints as made
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.fault_proxy import Fault, FaultProxy, until
from tests.fakes.hub import COMMIT, FakeHub
from tests.fakes.large_checkpoint import write_large
from tests.fakes.s3 import BUCKET, account, client, read_only, with_authorization

PREFIX = s3_place(f"s3://{BUCKET}/llama/gptq")
KILLS = 10
KILLED_MIB = int(os.environ.get("QUANTILE_TEST_STORE_MIB", "96"))
"""`make drill-store` sets 1024."""
QUICK = PullSettings(TransferSettings(backoff=Backoff(first_s=0.01, longest_s=0.05)))
COMMAND = [sys.executable, "-m", "serve_app.cli", "store"]


@pytest.fixture
def store(monkeypatch, tmp_path):
    with account(monkeypatch, tmp_path) as server:
        monkeypatch.setenv(STORE_DIR, str(tmp_path / "node"))
        yield server


@pytest.fixture
def proxy(store, monkeypatch):
    with FaultProxy(store.url) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between


@pytest.fixture(autouse=True)
def no_retries_inside(monkeypatch):
    """What boto3 retries by itself would hide whether we do."""
    monkeypatch.setattr(s3, "ATTEMPTS", 1)


@pytest.fixture
def leases(monkeypatch):
    """What this process would serve, given back at the end."""
    held = []
    monkeypatch.setattr(fetch, "_leases", held)
    yield held
    for lease in held:
        lease.release()


@pytest.fixture
def gptq(tmp_path):
    folder = write_checkpoint(tmp_path / "gptq", made.NATIVE_PACKED, made.GPTQ)
    (folder / "README.md").write_text("# A model\n")
    (folder / "tokenizer.json").write_bytes(random.Random(1).randbytes(MIB))
    (folder / "empty.txt").write_bytes(b"")
    (folder / ".hidden").write_text("not copied")
    return folder


def pushed(folder, prefix=PREFIX):
    return push(folder, prefix, Silent(), time.time()).place.uri


def same_files(one: Path, other: Path) -> bool:
    shown = [path for path in one.iterdir() if not path.name.startswith(".")]
    return all((other / path.name).read_bytes() == path.read_bytes() for path in shown)


def total_bytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def pulling(uri, *more):
    return subprocess.Popen(
        [*COMMAND, "pull", uri, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def command(*words):
    """In this process: a new one takes most of a second to import what it needs."""
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


class TestPush:
    def test_files_then_the_manifest_then_the_record(self, proxy, gptq):
        done = push(gptq, PREFIX, Silent(), 1000.0)
        puts = [
            request.path.rsplit("/", 1)[1]
            for request in proxy.requests
            if request.method == "PUT" and done.place.digest in request.path
        ]
        assert puts[-2:] == ["manifest.json", VARIANT_JSON]
        assert sorted(puts[:-2]) == [
            *("README.md", "config.json", "empty.txt", "model.safetensors", "tokenizer.json"),
        ]
        assert done.record.card == "README.md"
        assert done.record.scheme.describe() == "gptq W4A16 g128"
        assert done.place.uri == f"{PREFIX.uri}@{done.record.digest}"

    def test_what_is_there_is_not_sent_again(self, proxy, gptq):
        first = push(gptq, PREFIX, Silent(), 1000.0)
        proxy.forget()
        again = push(gptq, PREFIX, Silent(), 2000.0)
        assert again.sent == ()
        assert len(again.kept) == 5
        assert again.record == first.record
        assert [r.path.rsplit("/", 1)[1] for r in proxy.requests if r.method == "PUT"] == [
            "manifest.json"
        ]

    def test_one_that_breaks_off_is_not_seen_and_the_next_sends_the_rest(self, proxy, gptq):
        proxy.decide = lambda request: (
            Fault("slow_down") if request.method == "PUT" and "tokeni" in request.path else None
        )
        with pytest.raises(UnreachableError, match=r"cannot write s3://models/llama/.*SlowDown"):
            pushed(gptq)
        assert Bucket(PREFIX).variants() == []
        proxy.decide = lambda request: None
        done = push(gptq, PREFIX, Silent(), 1000.0)
        assert "tokenizer.json" in done.sent
        assert "config.json" in done.kept
        assert [place for place, _ in Bucket(PREFIX).variants()] == [done.place]

    def test_a_large_file_goes_in_parts(self, proxy, tmp_path):
        folder = write_large(tmp_path / "large", 40, shard_mib=40)
        uri = pushed(folder)
        parts = [r.path for r in proxy.requests if r.method == "PUT" and "partNumber=" in r.path]
        assert len(parts) == 3
        assert same_files(folder, into_cache(uri, Cache(), QUICK).folder)

    def test_variants_of_one_prefix_stand_beside_each_other(self, store, gptq):
        first = pushed(gptq)
        before = (gptq / "tokenizer.json").read_bytes()
        (gptq / "tokenizer.json").write_text("{}")
        second = pushed(gptq)
        assert first != second
        assert {place.uri for place, _ in Bucket(s3_place("s3://models")).variants()} == {
            first,
            second,
        }
        lease = into_cache(first, Cache(), QUICK)
        assert (lease.folder / "tokenizer.json").read_bytes() == before

    def test_a_folder_that_was_changed_since_it_was_made_is_not_pushed(self, store, gptq):
        uri = pushed(gptq)
        folder = into_cache(uri, Cache(), QUICK).folder
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"is not as it was made: tokenizer\.json"):
            pushed(folder)

    def test_refusals(self, store, gptq, tmp_path):
        with pytest.raises(CheckpointError, match="follows from the files"):
            pushed(gptq, PREFIX.at("0" * 64))
        with pytest.raises(CheckpointError, match="not a folder"):
            pushed(tmp_path / "none")
        with pytest.raises(CheckpointError, match=r"cannot .* s3://nobody/x.*: there is no such b"):
            pushed(gptq, s3_place("s3://nobody/x"))


class TestPull:
    def test_into_the_cache_once(self, proxy, gptq):
        uri = pushed(gptq)
        proxy.forget()
        lease = into_cache(uri, Cache(), QUICK)
        assert same_files(gptq, lease.folder)
        assert proxy.data_bytes == sum(path.stat().st_size for path in lease.folder.iterdir())
        assert all(path.name[0] != "." for path in lease.folder.iterdir())
        proxy.forget()
        assert into_cache(uri, Cache(), QUICK).folder == lease.folder
        assert proxy.requests == []

    def test_into_a_folder_that_is_whole_or_not_there(self, proxy, gptq, tmp_path):
        uri = pushed(gptq)
        impatient = PullSettings(TransferSettings(backoff=Backoff(2, 0, 0)))
        proxy.decide = lambda r: Fault("slow_down") if r.is_data and "token" in r.path else None
        with pytest.raises(UnreachableError):
            into_folder(uri, tmp_path / "out", impatient)
        assert not (tmp_path / "out").exists()
        proxy.decide = lambda request: None
        manifest = into_folder(uri, tmp_path / "out", QUICK)
        assert same_files(gptq, tmp_path / "out")
        assert into_folder(uri, tmp_path / "out", QUICK) == manifest
        (gptq / "tokenizer.json").write_text("{}")
        with pytest.raises(CheckpointError, match="holds something else"):
            into_folder(pushed(gptq), tmp_path / "out", QUICK)
        assert not list(tmp_path.glob(".out.pull/*"))

    def test_a_folder_that_nobody_pushed(self, store, gptq):
        for path in gptq.iterdir():
            client("s3").upload_file(str(path), BUCKET, f"plain/{path.name}")
        lease = into_cache(f"s3://{BUCKET}/plain", Cache(), QUICK)
        assert same_files(gptq, lease.folder)
        manifest = read_manifest(lease.folder)
        assert manifest.digest() == lease.digest
        verify(lease.folder, manifest)

    def test_the_right_to_read_is_enough_to_serve(self, store, gptq, monkeypatch, leases):
        uri = pushed(gptq)
        read_only(monkeypatch, ["s3:GetObject"])
        folder, checkpoint = with_authorization(lambda: preflight(variant(uri)))
        assert checkpoint.scheme.describe() == "gptq W4A16 g128"
        assert folder.parent == Cache().root
        (gptq / "tokenizer.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"access denied: .*s3:PutObject"):
            with_authorization(lambda: pushed(gptq))

    @pytest.mark.parametrize("kind", ["reset", "truncate", "slow_down", "stall"])
    def test_what_breaks_on_the_way_is_tried_again(self, proxy, tmp_path, kind, monkeypatch):
        monkeypatch.setattr(s3, "READ_TIMEOUT_S", 1)
        monkeypatch.setattr(Source, "part_bytes", MIB)
        folder = write_large(tmp_path / "large", 6, shard_mib=3)
        uri = pushed(folder)
        proxy.forget()
        broken = set()

        def once_each(request):
            if request.is_data and request.number % 3 == 0 and request.path not in broken:
                broken.add(request.path)
                return Fault(kind, 300_000)
            return None

        proxy.decide = once_each
        lease = into_cache(uri, Cache(), QUICK)
        assert broken
        assert same_files(folder, lease.folder)
        assert proxy.data_bytes <= total_bytes(lease.folder) + len(broken) * MIB

    def test_a_store_that_stays_away_is_given_up(self, proxy, gptq):
        uri = pushed(gptq)
        proxy.decide = lambda request: Fault("slow_down")
        with pytest.raises(UnreachableError, match=f"cannot read {PREFIX.uri}@.*SlowDown"):
            into_cache(uri, Cache(), PullSettings(TransferSettings(backoff=Backoff(3, 0, 0))))

    def test_wrong_bytes_once_are_fetched_again(self, proxy, gptq):
        uri = pushed(gptq)
        hit = []

        def once(request):
            if request.is_data and "tokenizer" in request.path and not hit:
                hit.append(request)
                return Fault("corrupt", 500_000)
            return None

        proxy.decide = once
        lease = into_cache(uri, Cache(), QUICK)
        assert hit
        assert same_files(gptq, lease.folder)

    def test_a_variant_that_was_changed_in_the_bucket_is_refused_until_it_is_pushed_again(
        self, store, gptq
    ):
        uri = pushed(gptq)
        key = f"{s3_place(uri).folder}tokenizer.json"
        client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"x" * MIB)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged: .*push it again"):
            into_cache(uri, Cache(), QUICK)
        client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"short")
        with pytest.raises(CheckpointError):
            into_cache(uri, Cache(), QUICK)
        assert pushed(gptq) == uri
        assert same_files(gptq, into_cache(uri, Cache(), QUICK).folder)

    def test_a_record_of_a_newer_quantile(self, store, gptq):
        uri = pushed(gptq)
        key = s3_place(uri).folder + VARIANT_JSON
        client("s3").put_object(Bucket=BUCKET, Key=key, Body=b'{"schema_version": 2}')
        with pytest.raises(CheckpointError, match="has schema 2, this QuanTile reads up to 1"):
            into_cache(uri, Cache(), QUICK)

    def test_a_digest_that_nobody_pushed(self, store):
        with pytest.raises(CheckpointError, match="it was deleted meanwhile, or never was"):
            into_cache(PREFIX.at("0" * 64).uri, Cache(), QUICK)

    def test_an_empty_prefix(self, store):
        with pytest.raises(CheckpointError, match=r"holds no checkpoint.*quantile store list"):
            into_cache(f"s3://{BUCKET}/nothing", Cache(), QUICK)


class TestProcesses:
    def test_killed_at_random_it_goes_on_where_it_was(self, proxy, tmp_path):
        folder = write_large(tmp_path / "large", KILLED_MIB, shard_mib=max(24, KILLED_MIB // 16))
        uri = pushed(folder)
        rng = random.Random(8)
        proxy.forget()
        size = total_bytes(folder)
        for _ in range(KILLS):
            process = pulling(uri)
            enough = proxy.data_bytes + rng.randrange(size // (KILLS + 4))
            until(lambda enough=enough: proxy.data_bytes > enough, 60)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL, "it was not killed on the way"
        assert Cache().find(s3_place(uri).digest) is None
        ended(pulling(uri))
        lease = Cache().find(s3_place(uri).digest)
        verify(lease.folder, read_manifest(lease.folder))
        twice = proxy.data_bytes - total_bytes(lease.folder)
        print(f"\n{size / MIB:.0f} MiB, {KILLS} kills: {twice / MIB:.2f} MiB came twice")
        assert 0 <= twice <= KILLS * Source.part_bytes

    def test_four_at_once_download_once(self, proxy, tmp_path):
        folder = write_large(tmp_path / "large", 32)
        uri = pushed(folder)
        proxy.forget()
        said = [ended(process) for process in [pulling(uri) for _ in range(4)]]
        assert len(set(said)) == 1
        lease = Cache().find(s3_place(uri).digest)
        assert same_files(folder, lease.folder)
        assert proxy.data_bytes == total_bytes(lease.folder)

    def test_when_the_one_that_downloads_is_killed_another_goes_on(self, proxy, tmp_path):
        folder = write_large(tmp_path / "large", 32)
        uri = pushed(folder)
        proxy.forget()
        proxy.decide = lambda r: Fault("stall", 6 * MIB) if r.is_data and r.number < 10 else None
        first = pulling(uri)
        until(lambda: proxy.data_bytes > 10 * MIB)
        others = [pulling(uri) for _ in range(2)]
        time.sleep(1.0)
        proxy.decide = lambda request: None
        first.kill()
        first.communicate()
        assert len({ended(process) for process in others}) == 1
        lease = Cache().find(s3_place(uri).digest)
        assert same_files(folder, lease.folder)
        assert proxy.data_bytes <= total_bytes(lease.folder) + Source.part_bytes


def variant(uri, method="gptq", **more):
    content = {"model": "m", "name": "a", "checkpoint": uri, "method": method, **more}
    return parse(VariantArgs, content, where="test")


class TestReplica:
    """What a variant's replica does before any engine is started."""

    async def test_wrong_bytes_never_reach_an_engine(self, proxy, gptq, monkeypatch, leases):
        monkeypatch.setenv("QUANTILE_INTERNAL_TOKEN", "0123456789abcdef")
        uri = pushed(gptq)
        proxy.decide = lambda r: Fault("corrupt", 99) if "model.safe" in r.path else None
        started = []
        server = VariantServer(variant(uri))
        monkeypatch.setattr(server, "_start", started.append)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            await server.__serve_build_asgi_app__()
        assert started == []
        assert Cache().find(s3_place(uri).digest) is None

    def test_what_the_disk_has_changed_is_downloaded_anew(self, proxy, gptq, leases):
        uri = pushed(gptq)
        folder, _ = preflight(variant(uri))
        leases.pop().release()
        (folder / "tokenizer.json").write_bytes(b"y" * MIB)
        proxy.forget()
        again, _ = preflight(variant(uri))
        assert again == folder
        assert same_files(gptq, again)
        assert proxy.data_bytes > MIB

    def test_what_the_disk_has_changed_under_another_replica_is_refused(self, store, gptq, leases):
        uri = pushed(gptq)
        folder, _ = preflight(variant(uri))
        (folder / "tokenizer.json").write_bytes(b"y" * MIB)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json has another SHA-256.*end it"):
            preflight(variant(uri))

    def test_a_served_checkpoint_is_not_swept(self, store, gptq, leases):
        uri = pushed(gptq)
        folder, _ = preflight(variant(uri))
        assert "in use" in command("gc", "--max-gib", "0")
        assert folder.is_dir()
        leases.pop().release()
        assert "dropped" in command("gc", "--max-gib", "0")
        assert not folder.exists()

    def test_a_name_without_a_digest_is_refused(self, store, gptq):
        pushed(gptq)
        with pytest.raises(CheckpointError, match="may change while replicas come and go"):
            preflight(variant(PREFIX.uri))

    def test_another_method_than_declared(self, store, gptq, leases):
        with pytest.raises(CheckpointError, match="declares awq"):
            preflight(variant(pushed(gptq), "awq"))


class TestStream:
    """`load_format: runai_streamer`: vLLM's own loader reads S3, where its packages are."""

    ENGINE: ClassVar = {"engine_args": {"load_format": "runai_streamer"}}

    def test_without_the_packages_it_says_how_to_have_them(self, store, gptq, monkeypatch):
        monkeypatch.setattr(stream, "_PACKAGES", ("no_such_streamer",))
        args = variant(pushed(gptq), engine=self.ENGINE)
        assert preflight(args)[0] is None
        with pytest.raises(ConfigError, match=r"no-such-streamer.*pip install 'runai-model-strea"):
            engine_spec(args, ("m",), None)

    def test_the_engine_gets_the_folder_in_s3(self, store, gptq, monkeypatch):
        monkeypatch.setattr(stream, "_PACKAGES", ())
        uri = pushed(gptq)
        monkeypatch.delenv("RUNAI_STREAMER_S3_ENDPOINT", raising=False)
        spec = engine_spec(variant(uri, engine=self.ENGINE), ("m",), None)
        assert spec.model_uri == f"{PREFIX.uri}/{s3_place(uri).digest}"
        assert os.environ["RUNAI_STREAMER_S3_ENDPOINT"] == store.url
        assert Cache().entries() == []
        plain = engine_spec(variant(uri), ("m",), gptq)
        assert (plain.model_uri, plain.checkpoint_dir) == (None, gptq)

    @pytest.mark.parametrize(
        ("gate", "refusal"),
        [
            ({}, None),
            ({"passed": False, "result": {"failures": ["2.5 nats"]}}, "failed.*2.5 nats"),
            ({"judged": "twin"}, "judged as its dense twin only"),
            ({"manifest_sha256": "0" * 64}, "is not what the correctness gate judged"),
            ({"machine": "compute capability 9.0"}, "elsewhere.*need vllm, dtype float16"),
            (None, "has not passed the correctness gate"),
        ],
    )
    def test_a_variant_of_ours_must_have_passed_its_gate(
        self, store, gptq, monkeypatch, gate, refusal
    ):
        monkeypatch.setattr(stream, "_PACKAGES", ())
        write_gate(gptq, gate)
        args = variant(pushed(gptq), engine=self.ENGINE | {"dtype": "float16"})
        if refusal is None:
            assert engine_spec(args, ("m",), None).model_uri
        else:
            with pytest.raises(CheckpointError, match=refusal):
                engine_spec(args, ("m",), None)


class TestJudgedElsewhere:
    """A variant of ours in a node's cache, and the kinds of machines that its gate ran on."""

    ENGINE: ClassVar = {"dtype": "float16"}

    def test_it_is_refused_until_this_kind_of_machine_has_judged_it(self, store, gptq, leases):
        write_gate(gptq, {"machine": "compute capability 9.0"})
        args = variant(pushed(gptq), engine=self.ENGINE)
        folder, _ = preflight(args)
        with pytest.raises(CheckpointError, match="have vllm, dtype float16, compute capability 9"):
            engine_spec(args, ("m",), folder)
        write_gate(gptq, {})  # a job on such a machine judges and pushes it
        assert variant(pushed(gptq), engine=self.ENGINE) == args
        folder, _ = preflight(args)  # what this node has fetched does not know
        assert engine_spec(args, ("m",), folder).checkpoint_dir == folder


def write_gate(folder: Path, changes: dict[str, object] | None) -> None:
    """Make the folder a variant of ours, judged on this machine but for the changes; None: not."""
    (folder / "quantile.json").write_text('{"method": "gptq"}')
    if changes is None:
        return
    here = setting_here("vllm", "float16")
    machine = changes.get("machine", here.machine)
    judgement = {
        "passed": True,
        "result": {},
        "key": {"limits": {}, "dtype": "float16", "engine": here.version, "machine": machine},
        **{name: changes[name] for name in ("passed", "result", "judged") if name in changes},
    }
    digest = changes.get("manifest_sha256", list_files(folder).digest())
    gate = {"manifest_sha256": digest, "judgements": [judgement], "schema_version": 3}
    (folder / "gate.json").write_bytes(msgspec.json.encode(gate))


class TestHub:
    @pytest.fixture
    def hub(self, store, tmp_path, monkeypatch):
        folder = write_checkpoint(
            tmp_path / "hub" / "TheBloke" / "Llama-2-7B-Chat-GPTQ", made.NATIVE_PACKED, made.GPTQ
        )
        (folder / "pytorch_model.bin").write_bytes(b"x" * 100)
        (folder / "README.md").write_text("# Its card\n")
        (folder / ".gitattributes").write_text("*")
        with FakeHub(tmp_path / "hub") as server:
            monkeypatch.setenv("HF_ENDPOINT", server.url)
            yield server

    def test_from_the_hub_into_s3_with_one_command(self, hub, leases):
        uri = "hf://TheBloke/Llama-2-7B-Chat-GPTQ"
        out = ended(pulling(uri, f"s3://{BUCKET}/llama-2-7b-chat/gptq"))
        name = out.splitlines()[-1]
        assert re.fullmatch(rf"s3://{BUCKET}/llama-2-7b-chat/gptq@[0-9a-f]{{64}}", name)
        ((place, record),) = Bucket(s3_place(f"s3://{BUCKET}")).variants()
        assert place.uri == name
        assert record.origin == f"{uri} at {COMMIT}"
        assert record.card == "README.md"
        folder, _ = preflight(variant(name))
        assert {path.name for path in folder.iterdir()} == {
            *("README.md", "config.json", "manifest.json", "model.safetensors")
        }
        listed = command("list", f"s3://{BUCKET}")
        assert name in listed
        assert "gptq W4A16 g128" in listed
        assert f"{name} is whole" in command("verify", name)

    def test_served_from_the_hub_by_its_revision(self, hub):
        uri = f"hf://TheBloke/Llama-2-7B-Chat-GPTQ@{COMMIT}"
        code = (
            f"from serve_app.store.fetch import fetch_checkpoint as fetch\nprint(fetch({uri!r}))\n"
        )
        for asked in (True, False):
            hub.state.requests.clear()
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert (Path(done.stdout.strip()) / "model.safetensors").is_file()
            assert bool(hub.state.requests) is asked, "a whole commit in the cache asks nobody"

    def test_bytes_that_are_not_what_the_hub_says(self, hub, tmp_path):
        hub.state.lies = True
        done = subprocess.run(
            [*COMMAND, "pull", "hf://TheBloke/Llama-2-7B-Chat-GPTQ"], capture_output=True, text=True
        )
        assert done.returncode != 0
        assert "is damaged: need git:" in " ".join(done.stderr.split())
        assert Cache().entries()[0].is_whole is False


def test_the_commands_by_hand(store, gptq, tmp_path):
    name = command("push", str(gptq), PREFIX.uri).splitlines()[-1]
    assert command("push", str(gptq), PREFIX.uri).startswith("0 files sent; 5 were there")
    assert command("pull", name, str(tmp_path / "out")).splitlines()[0] == str(tmp_path / "out")
    assert "is whole" in command("verify", str(tmp_path / "out"))
    digest = s3_place(name).digest
    command("pull", name)
    assert digest in command("list")
    assert "is whole" in command("verify", digest)
    assert "would drop" in command("gc", "--max-gib", "0", "--dry-run")
    assert digest in command("list")
    assert "used longest ago" in command("gc", "--max-gib", "0")
    assert digest not in command("list")
