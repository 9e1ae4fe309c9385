"""What `make test-gpu` judges must have been made: told at once, with the command."""

import dataclasses
import math

import pytest

from serve_app.config.gpus import load_gpus
from serve_app.domain.errors import CheckpointError
from serve_app.node.host import HostMemory
from serve_app.quantize import support
from serve_app.reference.locate import links_dir
from tests.gpu import formats
from tests.gpu.machine import Machine


@pytest.fixture
def h100(monkeypatch, tmp_path):
    """A machine with that GPU, and nothing in the cache."""
    monkeypatch.setenv("QUANTILE_HOME", str(tmp_path))
    card = dataclasses.replace(load_gpus()["H100"], bandwidth_gb_per_s=math.nan)
    monkeypatch.setattr(support, "this_machine", lambda: card)
    return Machine("gpu", HostMemory(), card, known=True)


def test_all_that_is_missing_is_named_with_one_command(h100):
    here, elsewhere = formats.judged_here(h100)
    assert {"fp8-block", "fp8-dynamic", "fp8-static", "int8-weight-only"} <= here.keys()
    assert {"gptq-w2", "rtn-w3"} <= elsewhere.keys()
    with pytest.raises(CheckpointError) as raised:
        formats.require_made(h100)
    text = str(raised.value)
    assert f"{len(here)} of the variants" in text
    assert "quantile reference build --only fp8-block --only fp8-dynamic" in text


def test_what_is_made_is_not_asked_for(h100):
    here, _ = formats.judged_here(h100)
    for name in here.keys() - {"fp8-static"}:
        (links_dir() / name).mkdir(parents=True)
    assert formats.not_made(h100) == ["fp8-static"]
    (links_dir() / "fp8-static").mkdir()
    formats.require_made(h100)
