"""Configuration is refused early, by name, with what is known in its place."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtests.campaign import load_campaign
from serve_app.config.calibration import load_calibration
from serve_app.config.gpus import load_gpus
from serve_app.config.parse import parse
from serve_app.config.rollout import read_rollout
from serve_app.config.schema import RouterArgs, RouterUserConfig, VariantArgs
from serve_app.config.serve_file import check_serve_file, load_serve_file
from serve_app.domain.errors import ConfigError
from serve_app.pipeline.pipeline_file import read_pipeline
from serve_app.quantize.catalogue import read_recipe

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.y*ml"))
OTHER_SCHEMAS = {"gpus.yaml": load_gpus, "calibration.yaml": load_calibration}
"""Files in configs/ that are no Serve configs, and what reads them."""
FOLDERS = {
    "campaigns": load_campaign,
    "quantize": read_recipe,
    "pipelines": read_pipeline,
    "rollouts": read_rollout,
}
"""The same for the folders of configs/."""


def variant_args(**changes: Any) -> dict[str, Any]:
    args = {"model": "m", "name": "a", "checkpoint": "reference://a", "method": "gptq"}
    return {**args, **changes}


def serve_file() -> dict[str, Any]:
    """The smallest sound file; each test breaks one thing."""
    split = {"split": {"a": 10_000}, "fallback": ["a"]}
    return {
        "applications": [
            {
                "name": "router",
                "route_prefix": "/",
                "import_path": "serve_app.app:router",
                "args": {"model": "m"},
                "deployments": [{"name": "VariantRouter", "user_config": split}],
            },
            {
                "name": "a",
                "route_prefix": "/variants/a",
                "import_path": "serve_app.app:variant",
                "args": variant_args(),
            },
        ]
    }


def another_variant(name: str, **args: Any) -> dict[str, Any]:
    return {
        "name": name,
        "route_prefix": f"/variants/{name}",
        "import_path": "serve_app.app:variant",
        "args": variant_args(name=name, **args),
    }


@pytest.fixture
def check(tmp_path):
    def check(content: Any) -> list[VariantArgs]:
        file = tmp_path / "serve.yaml"
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return check_serve_file(file)

    return check


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_shipped_yaml_is_valid_under_its_schema(file):
    read = FOLDERS.get(file.parent.name) or OTHER_SCHEMAS.get(file.name) or check_serve_file
    read(file)


def test_every_campaign_asks_a_model_that_a_shipped_file_serves():
    served = {
        args.model
        for file in CONFIGS
        if file.parent.name == "configs" and file.name not in OTHER_SCHEMAS
        for args in check_serve_file(file)
    }
    asked = {load_campaign(file).target.model for file in CONFIGS if "campaigns" in file.parts}
    assert asked <= served


@pytest.mark.parametrize(
    ("schema", "values", "said"),
    [
        (RouterArgs, {"model": "m", "max_body_byte": 1}, ["max_body_byte is", "max_body_bytes"]),
        (
            VariantArgs,
            variant_args(engine={"max_model_length": 1}),
            ["engine.max_model_length is not a known key", "max_model_len,", "engine_args"],
        ),
        (
            RouterUserConfig,
            {"split": {"a": 1}, "weights": {}},
            ["weights", "fallback, ladder, log_requests"],
        ),
        (RouterArgs, {}, ["model is required"]),
        (RouterArgs, {"model": "m@a"}, ["model:", "'m@a'"]),
        (RouterArgs, {"model": "m", "ingress_url": "https://h:1"}, ["ingress_url:"]),
        (VariantArgs, variant_args(method="int4"), ["method:", "'int4'", "gptq"]),
        (VariantArgs, variant_args(name="A/b"), ["name:", "'A/b'"]),
        (VariantArgs, variant_args(engine={"kind": "trt"}), ["engine.kind:", "'vllm'", "'trt'"]),
        (RouterUserConfig, {"split": {}}, ["split:"]),
        (RouterUserConfig, {"split": {"a": -1}}, ["split.a:", "-1"]),
        (RouterUserConfig, {"split": {"a": 0.5}}, ["split.a:", "0.5"]),
        (RouterUserConfig, {"split": {"a/b": 10_000}}, ["split.a/b", "pattern"]),
        (RouterUserConfig, "half of it", ["(top level)"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_fault_is_named_with_its_place_and_what_is_known_there(schema, values, said):
    with pytest.raises(ConfigError) as caught:
        parse(schema, values, where="the file")
    assert str(caught.value).startswith("the file: ")
    for part in said:
        assert part in str(caught.value)


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse(VariantArgs, {"model": "a b", "nam": "x"}, where="w")
    for part in ("model:", "nam is not", "name is required", "checkpoint is required"):
        assert part in str(caught.value)


def test_a_sound_file_gives_its_variants_in_order(check):
    content = serve_file()
    content["applications"] += [another_variant("c"), another_variant("b")]
    user_config = content["applications"][0]["deployments"][0]["user_config"]
    user_config["split"] |= {"c": 0, "b": 0}
    content["applications"].append({"name": "other", "import_path": "their.app:app"})
    assert [args.name for args in check(content)] == ["a", "c", "b"]


def _set(path: str, value: Any):
    def change(content: dict[str, Any]) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        target: Any = content["applications"]
        for part in parents:
            target = target[part]
        target[last] = value

    return change


def _append(item: dict[str, Any]):
    return lambda content: content["applications"].append(item)


USER_CONFIG = "0.deployments.0.user_config"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("1.args.method", "gtpq"), ["application 'a' args", "method:", "'gtpq'"]),
        (_set("1.args.engin", {}), ["engin is not a known key", "checkpoint, "]),
        (_set("1.route_prefix", "/variants/b"), ["'/variants/b'", "at '/variants/a'"]),
        (_set("1.route_prefix", None), ["None", "at '/variants/a'"]),
        (_set("1.args.model", "other"), ["variant a", "'other'", "'m'"]),
        (_set("0.args.model", "other"), ["variant a", "'other'", "'m'"]),
        (_set("0.args", None), ["router args", "model is required"]),
        (_set("0.import_path", "serve_app.app:ruoter"), ["one application", "has 0"]),
        (_set("0.deployments", []), ["VariantRouter needs a user_config"]),
        (_set("0.deployments.0.name", "Router"), ["VariantRouter needs a user_config"]),
        (
            _set(f"{USER_CONFIG}.spilt", {}),
            [
                "spilt is not a known key",
                "admission, aliases, cohorts, fallback, ladder, log_requests, resilience, shadow",
            ],
        ),
        (_set(f"{USER_CONFIG}.split", {"a": 9000}), ["have 9000", "by +1000"]),
        (_set(f"{USER_CONFIG}.split", {"a": 9000, "b": 1000}), ["split names b", "serves a"]),
        (_set(f"{USER_CONFIG}.fallback", ["z"]), ["fallback names z"]),
        (_set(f"{USER_CONFIG}.aliases", {"m": {"split": {"a": 10_000}}}), ["repeats 'm'"]),
        (
            _set(f"{USER_CONFIG}.aliases", {"other": {"split": {"a": 10_000}}}),
            ["send other to variant a", "`aliases` to ['other']"],
        ),
        (_set(f"{USER_CONFIG}.aliases", {"n": {"split": {"z": 10_000}}}), ["split names z"]),
        (_set(f"{USER_CONFIG}.cohorts", [{"name": "g"}]), ["cohort g changes nothing"]),
        (
            _set(f"{USER_CONFIG}.cohorts", [{"name": "g", "split": {"z": 10_000}}]),
            ["cohort g names z", "known: a"],
        ),
        (
            _set(f"{USER_CONFIG}.cohorts", [{"name": "g", "split": {"a": 10_000}}] * 2),
            ["different names", "g, g"],
        ),
        (
            _set(f"{USER_CONFIG}.cohorts", [{"name": "g", "split": {"a": 9_000}}]),
            ["have 9000", "by +1000"],
        ),
        (_append(serve_file()["applications"][0]), ["one application", "has 2"]),
        (_append(another_variant("a")), ["variant a", "twice"]),
        (_append("an application"), ["applications", "'an application'"]),
        (_set("0.deployments", ["VariantRouter"]), ["deployments", "'VariantRouter'"]),
    ],
)
def test_each_mistake_is_found_and_the_file_named(check, tmp_path, change, said):
    content = serve_file()
    change(content)
    with pytest.raises(ConfigError) as caught:
        check(content)
    assert str(tmp_path / "serve.yaml") in str(caught.value)
    for part in said:
        assert part in str(caught.value)


def test_a_router_that_asks_another_port_than_serve_listens_on_is_found(check):
    content = serve_file() | {"http_options": {"port": 9000}}
    with pytest.raises(ConfigError) as caught:
        check(content)
    for part in ("ingress_url", ":8000", "9000"):
        assert part in str(caught.value)
    content["applications"][0]["args"]["ingress_url"] = "http://127.0.0.1:9000"
    assert len(check(content)) == 1


@pytest.mark.parametrize("content", ["", "[]", "a: b", "applications: {a: b}", "a: [", "\x00"])
def test_what_is_no_serve_config_is_refused(check, tmp_path, content):
    with pytest.raises(ConfigError, match=r"serve\.yaml"):
        check(content)


def test_a_missing_file_and_a_binary_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*No such file"):
        load_serve_file(tmp_path / "none.yaml")
    (tmp_path / "weights.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match=r"weights\.yaml"):
        load_serve_file(tmp_path / "weights.yaml")


def test_a_variant_may_serve_several_public_names(check):
    content = serve_file()
    _set("1.args.aliases", ["fast"])(content)
    _set(f"{USER_CONFIG}.aliases", {"fast": {"split": {"a": 10_000}}})(content)
    assert [args.name for args in check(content)] == ["a"]


def test_the_documented_user_config_is_valid():
    text = (ROOT / "serve_app" / "routing" / "README.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    config = parse(RouterUserConfig, yaml.safe_load(block), where="routing/README.md")
    assert set(yaml.safe_load(block)) == set(RouterUserConfig.model_fields) - {"sleepers"}
    assert list(config.to_aliases("m")) == ["m", "assistant-fast"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ladder": {"rungs": ["a", "z"], "ttft_p95_ms": 1}}, "ladder names z"),
        ({"shadow": {"variant": "z", "share_bp": 1}}, "shadow names z"),
        ({"cohorts": [{"name": "g", "floor": "a"}]}, "rungs: none, as there is no ladder"),
        (
            {
                "ladder": {"rungs": ["a", "b"], "ttft_p95_ms": 1},
                "cohorts": [{"name": "g", "floor": "c"}],
            },
            "floor c, which is no rung of the ladder; rungs: a, b",
        ),
        ({"admission": {"keys_file": "keys.yaml"}}, "absolute path"),
    ],
)
def test_rules_that_name_what_is_not_there_are_refused(change, said):
    values = {"split": {"a": 10_000, "b": 0, "c": 0}} | change
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse(RouterUserConfig, values, where="user_config")
