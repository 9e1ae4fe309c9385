"""The directory where replicas meet is the user's own, or it is refused."""

import os

import pytest

from serve_app.domain.errors import ConfigError
from serve_app.node.runtime import RUNTIME_DIR, runtime_dir


def test_it_is_made_for_this_user_alone(tmp_path):
    path = tmp_path / "deep" / "run"
    assert runtime_dir({RUNTIME_DIR: str(path)}) == path
    assert path.stat().st_mode & 0o777 == 0o700
    assert runtime_dir({RUNTIME_DIR: str(path)}) == path


def test_one_that_others_may_enter_is_refused(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    path.chmod(0o750)
    with pytest.raises(ConfigError, match=r"mode 0700, have drwxr-x---"):
        runtime_dir({RUNTIME_DIR: str(path)})


def test_a_link_to_anywhere_is_refused(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="lrwxrwxrwx"):
        runtime_dir({RUNTIME_DIR: str(tmp_path / "run")})


def test_no_place_is_said_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=RUNTIME_DIR):
        runtime_dir({RUNTIME_DIR: str(tmp_path / "file" / "run")})


def test_without_the_variable_it_is_named_after_the_user(monkeypatch, tmp_path):
    monkeypatch.setattr("serve_app.node.runtime.Path", lambda text: tmp_path / text.lstrip("/"))
    assert runtime_dir({}) == tmp_path / "tmp" / f"quantile-{os.getuid()}"
