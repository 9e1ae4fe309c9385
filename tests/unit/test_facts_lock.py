"""The file of checkpoint facts beside a configuration."""

import json
from pathlib import Path

import pytest

from serve_app.domain.errors import ConfigError
from serve_app.store.facts import checkpoint_facts
from serve_app.store.facts_lock import facts_path, load_facts, save_facts

REFERENCE = str(Path(__file__).parents[2] / "serve_app" / "reference" / "checkpoint")


@pytest.fixture(scope="module")
def facts():
    fact = checkpoint_facts(REFERENCE)
    return {"s3://b/z": fact, "s3://b/a": fact}


@pytest.fixture
def path(tmp_path, facts):
    path = tmp_path / "prod.facts.json"
    save_facts(path, facts)
    return path


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        load_facts(path)
    assert str(path) in str(caught.value)
    assert "write it again" in str(caught.value)
    return str(caught.value)


def test_it_lies_beside_the_configuration():
    assert facts_path(Path("configs/prod.yaml")) == Path("configs/prod.facts.json")


def test_what_was_saved_is_loaded(path, facts):
    loaded = load_facts(path)
    assert set(loaded) == set(facts)
    for uri, fact in loaded.items():
        assert fact.uri == uri
        assert (fact.shape, fact.scheme, fact.weights) == (
            facts[uri].shape,
            facts[uri].scheme,
            facts[uri].weights,
        )


def test_no_file_is_no_facts(tmp_path):
    assert load_facts(tmp_path / "none.facts.json") == {}


def test_the_same_facts_make_the_same_file_whatever_their_order(path, tmp_path, facts):
    other = tmp_path / "other.facts.json"
    save_facts(other, dict(reversed(facts.items())))
    assert other.read_bytes() == path.read_bytes()
    lines = path.read_text().splitlines()
    assert lines[2].strip() == '"s3://b/a": {'
    assert max(map(len, lines)) < 60, "one value per line"
    assert path.read_text().endswith("}\n")


def test_it_is_replaced_in_one_step(path, tmp_path, facts):
    before = path.stat().st_ino
    save_facts(path, {"s3://b/a": facts["s3://b/a"]})
    assert path.stat().st_ino != before
    assert set(load_facts(path)) == {"s3://b/a"}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_is_not_there(tmp_path, facts):
    with pytest.raises(ConfigError, match="cannot write"):
        save_facts(tmp_path / "none" / "x.facts.json", facts)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"{}", b'{"format": 1}', b'{"a": 1}'])
def test_a_file_that_is_none_of_ours(path, raw):
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="cannot use"):
        load_facts(path)


def test_another_format_says_so(path):
    assert "format 2, this version reads 1" in edited(path, lambda it: it.update(format=2))


def entry(content):
    return content["checkpoints"]["s3://b/a"]


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.update(extra=1),
        lambda it: entry(it).update(extra=1),
        lambda it: entry(it)["shape"].update(extra=1),
        lambda it: entry(it)["shape"].pop("window"),
        lambda it: entry(it)["shape"].pop("n_layers"),
        lambda it: entry(it)["shape"].update(n_layers="32"),
        lambda it: entry(it)["scheme"].update(method="int3"),
        lambda it: entry(it)["weights"].update(linear_bytes=1.5),
        lambda it: entry(it).pop("weights"),
    ],
)
def test_a_file_that_somebody_edited_wrongly(path, change):
    edited(path, change)
