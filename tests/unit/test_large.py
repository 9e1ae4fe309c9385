"""The large shape's cache: what is there is not made again, what fails is named."""

import shutil

import pytest

from serve_app.domain.errors import BuildError
from serve_app.quantize.catalogue import recipe
from serve_app.quantize.order import Event
from serve_app.reference import large
from serve_app.reference.build import CHECKPOINT
from serve_app.reference.locate import QUANTIZE_JSON


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache that holds the checkpoint's folder, so that no weights are drawn."""
    monkeypatch.setenv("QUANTILE_HOME", str(tmp_path))
    large.locate_large().folder.mkdir(parents=True)
    return tmp_path


class Quantizer:
    """Makes empty variants, but not those that it is told to fail."""

    def __init__(self, *fails):
        self.fails, self.asked = fails, []

    def __call__(self, base, items, hear):
        self.asked += [item.recipe.name for item in items]
        for item in items:
            if item.recipe.name in self.fails:
                hear(Event(variant=item.recipe.name, state="failed", detail="no room"))
                continue
            (item.out / QUANTIZE_JSON).write_text("{}")
            hear(Event(variant=item.recipe.name, state="made"))


def test_the_unquantized_variant_is_the_checkpoint_and_others_are_made_once(home):
    quantizer = Quantizer()
    chosen = [recipe("baseline"), recipe("rtn")]
    first = large.ensure_variants(chosen, quantizer)
    assert first["baseline"] == large.locate_large().folder
    assert first["rtn"].name.startswith("rtn-") and (first["rtn"] / QUANTIZE_JSON).is_file()
    assert large.ensure_variants(chosen, quantizer) == first
    assert quantizer.asked == ["rtn"]


def test_what_cannot_be_made_is_named_and_the_rest_stays(home):
    with pytest.raises(BuildError, match="rtn-w3: no room"):
        large.ensure_variants([recipe("rtn"), recipe("rtn-w3")], Quantizer("rtn-w3"))
    again = Quantizer()
    large.ensure_variants([recipe("rtn")], again)
    assert again.asked == []
    assert not list(large.large_dir().glob(".making-*"))


def test_another_tokenizer_is_another_checkpoint(home, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(CHECKPOINT, source)
    same = large.locate_large(source)
    assert same == large.locate_large()
    (source / "tokenizer.json").write_text("{}")
    assert large.locate_large(source).folder != same.folder


def test_the_card_says_that_the_weights_are_random():
    assert "weights are random" in large.CARD and "no quality" in large.LABEL
