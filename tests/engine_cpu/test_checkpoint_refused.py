"""A checkpoint that is not what it is declared to be is refused before any engine starts."""

import time
from pathlib import Path

import pytest
import yaml

from serve_app.domain.errors import EngineError
from serve_app.serving.local_serve import LocalServe
from serve_app.serving.ports import own_ports
from tests.engine_cpu.conftest import CONFIG

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
PORT = 8101


def config_of_one(tmp_path: Path, **changes) -> Path:
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"]["port"] = PORT
    router, variant = config["applications"][:2]
    router["args"]["ingress_url"] = f"http://127.0.0.1:{PORT}"
    router["deployments"][0]["user_config"] = {"split": {"bf16": 10_000}}
    variant["args"].update(changes)
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({**config, "applications": [router, variant]}))
    return path


def test_the_declared_method_must_be_the_real_one(family, tmp_path):
    config = config_of_one(tmp_path, method="gptq")
    start = time.monotonic()
    with (
        pytest.raises(
            EngineError, match="declares gptq, but the checkpoint is unquantized bfloat16"
        ),
        LocalServe(config, log=tmp_path / "serve.log", environ=own_ports()),
    ):
        pass
    assert time.monotonic() - start < 120
    assert "EngineCore" not in (tmp_path / "serve.log").read_text()


def test_an_unknown_engine_argument_is_refused_with_vllms_list(family, tmp_path):
    engine = {"dtype": "bfloat16", "engine_args": {"max_model_length": 512}}
    config = config_of_one(tmp_path, engine=engine)
    with (
        pytest.raises(EngineError, match=r"max_model_length is not an argument of vLLM's server"),
        LocalServe(config, log=tmp_path / "serve.log", environ=own_ports()),
    ):
        pass
    assert "EngineCore" not in (tmp_path / "serve.log").read_text()
