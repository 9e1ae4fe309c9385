import pytest

from serve_app.domain.errors import BuildError, ConfigError
from serve_app.quantize.calibration import (
    calibration_rows,
    file_source,
    reference_source,
    rows_digest,
)
from serve_app.quantize.recipes import Calibration


def encode(text):
    """One token per character; messages one after another."""
    if not isinstance(text, str):
        text = "".join(message["content"] for message in text)
    return [ord(letter) for letter in text]


def test_a_file_may_hold_text_and_messages(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text(
        '{"text": "ab\u2028d"}\n\n{"messages": [{"role": "user", "content": "efgh"}]}\n'
    )
    rows = calibration_rows(Calibration(samples=2, length_tokens=4), file_source(path), encode)
    assert rows == [encode("ab\u2028d"), encode("efgh")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2 is not JSON"),
        ('{"prompt": "x"}', r":2: need \{.text.: "),
        ('{"text": ""}', ":2: need"),
        ('["text"]', ":2: need"),
        ('{"messages": [{"role": "user"}]}', ":2: need"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=message):
        file_source(path)


def test_no_file_and_no_text_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the calibration file"):
        file_source(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="has no calibration text"):
        file_source(tmp_path / "empty.jsonl")


def test_too_little_text_says_how_much_there_is(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "abcd"}\n')
    with pytest.raises(BuildError, match=r"needs 6 tokens, .* gives 4"):
        calibration_rows(Calibration(samples=2, length_tokens=3), file_source(path), encode)


def test_the_reference_corpus_is_enough_and_the_digest_follows_the_tokens():
    wanted = Calibration(samples=96, length_tokens=128)
    rows = calibration_rows(wanted, reference_source(), encode)
    assert {len(row) for row in rows} == {128}
    assert len(rows) == 96
    changed = [*rows[:-1], [0, *rows[-1][1:]]]
    assert rows_digest(rows) != rows_digest(changed)
