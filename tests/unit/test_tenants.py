"""The file of tenants: what it may say, what its keys open, and the command that writes it."""

import datetime
import hashlib
import os
import stat
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from serve_app.config.admission import AdmissionConfig
from serve_app.config.tenants import LimitsConfig, digest_of, key_ring, parse_tenants, read_tenants
from serve_app.domain.errors import ConfigError
from serve_app.routing.admission import Limits
from serve_app.serving.admission_keys import KeyFile
from serve_app.tenants_cli import keys

DIGEST = "a" * 64
NOW_S = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.UTC).timestamp()


def tenants(**entries):
    return yaml.safe_dump({"tenants": entries})


class TestFile:
    def test_what_it_may_say(self):
        text = f"""
tenants:
  acme:
    cohort: paying
    keys:
      - {{sha256: {DIGEST}, hint: qtl-3fA9, created: 2026-11-28, expires: 2027-03-01}}
      - {{sha256: {"b" * 64}}}
    requests_per_minute: 600
    burst: 20
    concurrent_requests: 8
    tokens_per_minute: 100000
    tokens_per_day: 2000000
    models: [llama]
    variants: [int8, awq]
"""
        ring = key_ring(parse_tenants(text, "keys.yaml"))
        tenant = ring.tenants["acme"]
        assert (tenant.cohort, tenant.models, tenant.variants) == (
            "paying",
            {"llama"},
            {"int8", "awq"},
        )
        assert tenant.limits.to_limits() == Limits(600, 20, 8, 100_000, 2_000_000)
        assert len(ring.keys) == 2

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "top level"),
            ("tenants: {}", "tenants"),
            ("tenants:\n  [", r"line \d"),
            ("[]", "top level"),
            (tenants(acme={}), "tenants.acme.keys"),
            (tenants(acme={"keys": []}), "tenants.acme.keys"),
            (tenants(acme={"keys": [{"sha256": "qtl-secret"}]}), "keys hash"),
            (tenants(acme={"keys": [{"sha256": DIGEST.upper()}]}), "keys hash"),
            (tenants(acme={"keys": [{"sha256": DIGEST}], "limit": 1}), "tenants.acme.limit"),
            (tenants(acme={"keys": [{"sha256": DIGEST}], "burst": 1}), "requests_per_minute"),
            (tenants(acme={"keys": [{"sha256": DIGEST, "qtl-secret": 1}]}), "may be a key"),
            (tenants(anonymous={"keys": [{"sha256": DIGEST}]}), "router's own"),
            (tenants(other={"keys": [{"sha256": DIGEST}]}), "router's own"),
            (tenants(**{"qtl-secret": {"keys": [{"sha256": DIGEST}]}}), "looks like an API key"),
            (tenants(**{"QTL secret": {"keys": [{"sha256": DIGEST}]}}), "tenants"),
            (
                tenants(a={"keys": [{"sha256": DIGEST}]}, b={"keys": [{"sha256": DIGEST}]}),
                "a and b",
            ),
            ("tenants: {acme: qtl-secret}", "tenants.acme"),
        ],
    )
    def test_what_is_wrong_is_told_without_telling_a_key(self, text, said):
        with pytest.raises(ConfigError, match=said) as refused:
            parse_tenants(text, "keys.yaml")
        assert str(refused.value).startswith("keys.yaml")
        assert "secret" not in str(refused.value)

    @pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b"tenants: 1"])
    def test_what_is_no_such_file(self, tmp_path, raw):
        file = tmp_path / "keys"
        file.write_bytes(raw)
        with pytest.raises(ConfigError):
            read_tenants(file)

    def test_an_endless_file_is_not_read_to_its_end(self):
        with pytest.raises(ConfigError, match="more than"):
            read_tenants(Path("/dev/zero"))


class TestKeys:
    def test_found_by_the_key_itself_only(self):
        digest = hashlib.sha256(b"the key").hexdigest()
        ring = key_ring(parse_tenants(tenants(acme={"keys": [{"sha256": digest}]}), "f"))
        assert ring.find(b"the key", NOW_S) == "acme"
        assert ring.find(b"the kez", NOW_S) is None
        assert ring.find(b"", NOW_S) is None
        assert ring.find(digest.encode(), NOW_S) is None, "the digest is no key"
        assert ring.find(bytes.fromhex(digest), NOW_S) is None

    def test_it_opens_until_the_day_on_which_it_expires(self):
        entry = {"keys": [{"sha256": digest_of("k"), "expires": datetime.date(2026, 11, 29)}]}
        ring = key_ring(parse_tenants(tenants(acme=entry), "f"))
        midnight_s = NOW_S + 12 * 3600
        assert ring.find(b"k", midnight_s - 1) == "acme"
        assert ring.find(b"k", midnight_s) is None


class TestLimits:
    def test_replicas_share_them(self):
        limits = LimitsConfig(
            requests_per_minute=600,
            burst=3,
            concurrent_requests=8,
            tokens_per_minute=1000,
            tokens_per_day=9000,
        )
        assert limits.to_limits(3) == Limits(200, 1.0, 2, 1000 / 3, 3000)
        assert LimitsConfig(concurrent_requests=2).to_limits(3).concurrent == 1

    def test_nothing_set_is_nothing_limited(self):
        assert LimitsConfig().to_limits(4) == Limits()
        assert Limits().are_unlimited
        assert not Limits(tokens_per_day=1).are_unlimited

    @pytest.mark.parametrize(("rpm", "burst"), [(600, 100), (60, 10), (1, 1), (0.5, 1)])
    def test_a_burst_is_ten_seconds_worth_where_none_is_set(self, rpm, burst):
        assert LimitsConfig(requests_per_minute=rpm).to_limits().burst == burst

    @pytest.mark.parametrize("name", list(LimitsConfig.model_fields))
    def test_zero_is_no_limit_that_one_can_mean(self, name):
        with pytest.raises(ValidationError):
            LimitsConfig.model_validate({"requests_per_minute": 1, name: 0})

    def test_a_path_is_absolute(self):
        with pytest.raises(ValidationError, match="absolute"):
            AdmissionConfig(keys_file="keys.yaml")


class TestKeyFile:
    """Where a file stands that others replace while we look at it."""

    def test_as_kubernetes_replaces_a_secret(self, tmp_path):
        for version, digit in (("v1", "a"), ("v2", "b")):
            folder = tmp_path / version
            folder.mkdir()
            (folder / "keys.yaml").write_text(tenants(acme={"keys": [{"sha256": digit * 64}]}))
        data = tmp_path / "..data"
        data.symlink_to("v1")
        path = tmp_path / "keys.yaml"
        path.symlink_to("..data/keys.yaml")
        file = KeyFile(path)
        assert file.refresh() is None
        swap = tmp_path / "..data_tmp"
        swap.symlink_to("v2")
        swap.rename(data)
        ring = file.refresh()
        assert ring is not None
        assert list(ring.keys) == [bytes.fromhex("b" * 64)]
        assert file.refresh() is None

    def test_gone_and_back_broken_and_mended(self, tmp_path):
        path = tmp_path / "keys.yaml"
        good = tenants(acme={"keys": [{"sha256": DIGEST}]})
        path.write_text(good)
        file = KeyFile(path)
        first = file.ring
        path.unlink()
        assert file.refresh() is None
        assert "cannot read" in (file.problem or "")
        assert file.ring is first
        path.write_text("")  # as a writer leaves it that truncates first
        assert file.refresh() is None
        assert "top level" in (file.problem or "")
        path.write_text(good)
        assert file.refresh() is not None
        assert file.problem is None

    def test_what_could_not_be_read_is_tried_again(self, tmp_path, monkeypatch):
        """Patched: root reads every file, whatever its mode."""
        path = tmp_path / "keys.yaml"
        path.write_text(tenants(acme={"keys": [{"sha256": DIGEST}]}))
        file = KeyFile(path)
        os.utime(path, ns=(1, 1))
        module = "serve_app.serving.admission_keys.read_tenants"

        def refuse(path):
            raise ConfigError("cannot read it: Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(module, refuse)
            assert file.refresh() is None
        assert file.refresh() is not None, "its look has not changed, but it was not read"


class TestCommand:
    def run(self, *words, stdin=None):
        return CliRunner().invoke(keys, [str(word) for word in words], input=stdin)

    def key_of(self, done) -> str:
        assert done.exit_code == 0, done.output
        return done.stdout.strip().splitlines()[-1]

    def test_a_key_is_made_shown_once_and_stored_as_its_digest(self, tmp_path):
        file = tmp_path / "keys.yaml"
        words = ("--cohort", "paying", "--requests-per-minute", 60, "--variant", "int8")
        key = self.key_of(self.run("add", "acme", "--file", file, *words))
        assert len(key) == 47
        assert key not in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert "admin" not in file.read_text(), "what is not asked for is not written"
        ring = key_ring(read_tenants(file))
        assert ring.find(key.encode(), NOW_S) == "acme"
        assert ring.tenants["acme"].cohort == "paying"
        assert ring.tenants["acme"].limits.requests_per_minute == 60
        assert not list(tmp_path.glob(".*")), "no draft is left"
        assert self.run("hash", stdin=f"{key}\n").stdout.strip() == digest_of(key)

    def test_an_admin_is_one_only_where_it_is_said(self, tmp_path):
        file = tmp_path / "keys.yaml"
        self.key_of(self.run("add", "boss", "--file", file, "--admin"))
        self.key_of(self.run("add", "acme", "--file", file))
        tenants = key_ring(read_tenants(file)).tenants
        assert [tenants[name].is_admin for name in ("boss", "acme")] == [True, False]

    @pytest.mark.parametrize("name", ["keys.yaml", "keys.json"])
    def test_a_second_key_leaves_the_first_and_the_limits(self, tmp_path, name):
        file = tmp_path / name
        first = self.key_of(self.run("add", "acme", "--file", file, "--tokens-per-day", 100))
        file.chmod(0o640)
        second = self.key_of(self.run("add", "acme", "--file", file, "--expires", "2999-01-01"))
        self.key_of(self.run("add", "rival", "--file", file))
        ring = key_ring(read_tenants(file))
        assert {ring.find(key.encode(), NOW_S) for key in (first, second)} == {"acme"}
        assert ring.tenants["acme"].limits.tokens_per_day == 100
        assert stat.S_IMODE(file.stat().st_mode) == 0o640, "as its owner set it"
        told = self.run("list", "--file", file).stdout
        assert "tokens_per_day 100" in told
        assert "until 2999-01-01" in told
        assert first not in told
        assert "3 keys of 2 tenants" in self.run("check", "--file", file).stdout

    def test_through_a_symbolic_link_it_writes_the_file(self, tmp_path):
        file, link = tmp_path / "keys.yaml", tmp_path / "link.yaml"
        self.key_of(self.run("add", "acme", "--file", file))
        link.symlink_to(file)
        self.key_of(self.run("add", "rival", "--file", link))
        assert link.is_symlink()
        assert set(read_tenants(file).tenants) == {"acme", "rival"}

    @pytest.mark.parametrize(
        "text",
        ["tenants: [", f"tenants:\n  # ours\n  acme: {{keys: [{{sha256: {DIGEST}}}]}}\n"],
        ids=["broken", "with comments"],
    )
    def test_what_it_would_spoil_it_leaves(self, tmp_path, text):
        file = tmp_path / "keys.yaml"
        file.write_text(text)
        done = self.run("add", "acme", "--file", file)
        assert isinstance(done.exception, ConfigError)
        assert file.read_text() == text

    @pytest.mark.parametrize(
        "words", [("acme", "--burst", 3), ("Not A Name",), ("acme", "--expires", "soon")]
    )
    def test_nothing_wrong_is_written(self, tmp_path, words):
        file = tmp_path / "keys.yaml"
        done = self.run("add", *words, "--file", file)
        assert isinstance(done.exception, ConfigError)
        assert not list(tmp_path.iterdir())

    def test_a_weak_key_is_not_hashed(self):
        assert isinstance(self.run("hash", stdin="hunter2\n").exception, ConfigError)

    def test_check_warns(self, tmp_path):
        file = tmp_path / "keys.yaml"
        self.key_of(self.run("add", "acme", "--file", file, "--expires", "2020-01-01"))
        file.chmod(0o666)
        told = self.run("check", "--file", file).stdout
        assert "has expired (2020-01-01)" in told
        assert "others may write" in told
