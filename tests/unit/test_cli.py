"""`quantile`: a sound file is described, what is wrong is one line and exit code 2."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from serve_app.cli import main
from tests.fakes import checkpoints as made
from tests.fakes.checkpoints import write_checkpoint


@pytest.fixture
def serve_file(tmp_path):
    write_checkpoint(tmp_path / "gptq", made.PACKED, made.CT_W4)
    args = {"model": "m", "name": "a", "checkpoint": str(tmp_path / "gptq"), "method": "gptq"}
    router = {
        "name": "router",
        "route_prefix": "/",
        "import_path": "serve_app.app:router",
        "args": {"model": "m"},
        "deployments": [{"name": "VariantRouter", "user_config": {"split": {"a": 10_000}}}],
    }
    variant = {
        "name": "a",
        "route_prefix": "/variants/a",
        "import_path": "serve_app.app:variant",
        "args": args,
    }
    file = tmp_path / "serve.yaml"

    def write(**changes: object) -> Path:
        args.update(changes)
        file.write_text(yaml.safe_dump({"applications": [router, variant]}))
        return file

    return write


@pytest.fixture
def check(monkeypatch, capsys):
    """The command in this process: starting one takes seconds."""

    def check(file: Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quantile", "check", str(file)])
        monkeypatch.setenv("COLUMNS", "10000")
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return check


def test_a_sound_file(serve_file, check):
    code, out, err = check(serve_file())
    assert (code, err) == (0, "")
    assert "a: gptq W4A16 g128 (compressed-tensors), " in out
    assert "is sound" in out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "int8_w8a8"}, "declares int8_w8a8, but the checkpoint is gptq W4A16 g128"),
        ({"methd": "gptq"}, "methd is not a known key; known here: aliases, checkpoint, engine, "),
        ({"checkpoint": "/nowhere/[red]x"}, "'/nowhere/[red]x' is not a checkpoint: need a folder"),
    ],
)
def test_a_wrong_file_is_one_line_on_stderr_and_exit_code_2(serve_file, check, changes, said):
    code, out, err = check(serve_file(**changes))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


def quantile(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["quantile", *words])
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("words", [["--remote-workers", "2"], ["--listen", "10.0.0.5:5557"]])
def test_workers_elsewhere_need_a_number_and_an_address(monkeypatch, capsys, tmp_path, words):
    smoke = "configs/campaigns/smoke.yaml"
    out = tmp_path / "run"
    assert quantile(monkeypatch, "loadtest", smoke, "--out", str(out), *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: need both --listen HOST:PORT")
    assert " ".join(words[:1]) in said
    assert not out.exists()


def test_a_load_worker_hands_on_the_name_of_its_key(monkeypatch):
    started = []

    def run(command, **_):
        started.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr("loadtests.cli.subprocess.run", run)
    where = ["load-worker", "--master", "10.0.0.5:5557"]
    assert quantile(monkeypatch, *where) == 1
    assert quantile(monkeypatch, *where, "--api-key-env", "KEY_OF_M") == 1
    worker = [sys.executable, "-m", "loadtests.drive.worker", "--master", "10.0.0.5:5557"]
    assert started == [worker, [*worker, "--api-key-env", "KEY_OF_M"]]
