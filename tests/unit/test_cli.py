"""`quantile check`: a sound file is described, a wrong one is one line and exit code 2."""

import sys
from pathlib import Path

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
        ({"methd": "gptq"}, "methd is not a known key; known here: checkpoint, engine, "),
        ({"checkpoint": "/nowhere/[red]x"}, "'/nowhere/[red]x' is not a checkpoint: need a folder"),
    ],
)
def test_a_wrong_file_is_one_line_on_stderr_and_exit_code_2(serve_file, check, changes, said):
    code, out, err = check(serve_file(**changes))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
