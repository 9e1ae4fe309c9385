"""The internal token: from a secret where there is one, else this machine's own."""

import stat
import subprocess
import sys

import pytest

from serve_app.config.secrets import MIN_TOKEN_LENGTH, internal_token
from serve_app.domain.errors import ConfigError

TOKEN = "0123456789abcdef"


def test_the_variable_wins_over_the_file(tmp_path):
    (tmp_path / "token").write_text("f" * MIN_TOKEN_LENGTH)
    file = {"QUANTILE_INTERNAL_TOKEN_FILE": str(tmp_path / "token")}
    assert internal_token(file) == "f" * MIN_TOKEN_LENGTH
    assert internal_token({**file, "QUANTILE_INTERNAL_TOKEN": TOKEN}) == TOKEN


def test_a_mounted_secret_may_end_in_a_newline(tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert internal_token({"QUANTILE_INTERNAL_TOKEN_FILE": str(tmp_path / "token")}) == TOKEN


def test_a_short_token_is_refused_with_its_source_and_without_itself(tmp_path):
    (tmp_path / "token").write_text("hunter2")
    with pytest.raises(ConfigError, match="has 7 characters, needs at least 16") as caught:
        internal_token({"QUANTILE_INTERNAL_TOKEN_FILE": str(tmp_path / "token")})
    assert str(tmp_path / "token") in str(caught.value)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="QUANTILE_INTERNAL_TOKEN has 15"):
        internal_token({"QUANTILE_INTERNAL_TOKEN": TOKEN[1:]})


@pytest.mark.parametrize("character", ["\n", "\r\nx-admin: 1\r\n", " ", "\x00", "ü", "漢"])
def test_a_token_that_no_header_can_carry_is_refused(character):
    with pytest.raises(ConfigError, match="printable ASCII") as caught:
        internal_token({"QUANTILE_INTERNAL_TOKEN": f"{TOKEN}{character}{TOKEN}"})
    assert TOKEN not in str(caught.value)


def test_a_secret_that_is_not_mounted_is_an_error_and_no_other_token(tmp_path):
    with pytest.raises(ConfigError, match="not a file"):
        internal_token({"QUANTILE_INTERNAL_TOKEN_FILE": str(tmp_path / "token")})


def test_this_machines_own_token_is_made_once_for_its_user_alone(tmp_path):
    environ = {"XDG_STATE_HOME": str(tmp_path / "state")}
    token = internal_token(environ)
    assert len(token) == 64
    assert internal_token(environ) == token
    folder = tmp_path / "state" / "quantile"
    assert [file.name for file in folder.iterdir()] == ["internal-token"]
    assert stat.S_IMODE((folder / "internal-token").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_racing_processes_get_one_token(tmp_path):
    code = (
        "import sys\n"
        "from serve_app.config.secrets import internal_token\n"
        "print('ready', flush=True); sys.stdin.read()\n"
        "for race in range(200):\n"
        "    print(internal_token({'XDG_STATE_HOME': f'{sys.argv[1]}/{race}'}))"
    )
    pipe = subprocess.PIPE
    racers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=pipe, stdout=pipe)
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout.readline() == b"ready\n"
    for racer in racers:
        racer.stdin.close()
    outcomes = {racer.stdout.read() for racer in racers}
    assert [racer.wait() for racer in racers] == [0] * len(racers)
    assert len(outcomes) == 1
    tokens = outcomes.pop().split()
    assert len(set(tokens)) == 200
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {"internal-token"}
    for racer in racers:
        racer.stdout.close()


def test_a_variable_that_is_set_but_blank_is_a_secret_that_went_missing():
    for blank in ("", " ", "\n"):
        with pytest.raises(ConfigError, match="QUANTILE_INTERNAL_TOKEN has 0 characters"):
            internal_token({"QUANTILE_INTERNAL_TOKEN": blank})
