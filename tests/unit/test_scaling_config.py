"""Autoscaling in a config file: what Serve would take and nobody would notice is refused."""

import json

import pytest
import yaml

from serve_app.config.serve_file import check_serve_file
from serve_app.domain.errors import ConfigError

FILE = """
applications:
  - name: router
    route_prefix: /
    import_path: serve_app.app:router
    args: {model: m}
    deployments:
      - name: VariantRouter
        user_config: {split: {awq: 6000, fp8: 4000}, sleepers: [awq]}
  - name: awq
    route_prefix: /variants/awq
    import_path: serve_app.app:variant
    args: &args
      {model: m, name: awq, checkpoint: c, method: awq, gpu: &gpu {type: L4, fraction: 0.25}}
    deployments:
      - name: VariantServer
        autoscaling_config: &scaling
          min_replicas: 0
          max_replicas: 4
          upscale_delay_s: 0
          downscale_delay_s: 0
          policy:
            policy_function: serve_app.scaling.serve_policy:VariantAutoscaler
            policy_kwargs: {gpu: *gpu, budget: {L4: 2}, weight: 2.0, idle_s: 300}
  - name: fp8
    route_prefix: /variants/fp8
    import_path: serve_app.app:variant
    args: {<<: *args, name: fp8, method: fp8}
    deployments:
      - name: VariantServer
        autoscaling_config: {<<: *scaling, min_replicas: 1}
"""


@pytest.fixture
def content():
    return json.loads(json.dumps(yaml.safe_load(FILE)))  # without what aliases share


@pytest.fixture
def check(content, tmp_path):
    def write_and_check():
        file = tmp_path / "serve.yaml"
        file.write_text(yaml.safe_dump(content))
        return [args.name for args in check_serve_file(file)]

    return write_and_check


def scaling(content, name: str) -> dict:
    application = next(each for each in content["applications"] if each["name"] == name)
    return application["deployments"][0]["autoscaling_config"]


def kwargs(content, name: str) -> dict:
    return scaling(content, name)["policy"]["policy_kwargs"]


def test_the_file_is_right(check):
    assert check() == ["awq", "fp8"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: kwargs(c, "awq").update(wieght=1), "wieght"),
        (lambda c: kwargs(c, "awq").update(slack=2), "slack"),
        (lambda c: kwargs(c, "awq").update(weight=-1), "weight"),
        (lambda c: kwargs(c, "awq").update(gpu={"type": "L4", "fraction": 0.3}), "YAML alias"),
        (lambda c: kwargs(c, "awq").pop("gpu"), "YAML alias"),
        (lambda c: kwargs(c, "awq").update(tensor_parallel_size=2), "tensor_parallel_size"),
        (lambda c: kwargs(c, "awq").update(budget={"H100": 1}), "GPUs of type L4"),
        (lambda c: kwargs(c, "awq").update(budget={"L4": 0.5}), "whole GPUs"),
        (lambda c: kwargs(c, "fp8").update(budget={"L4": 3}), "one GPU budget"),
        (lambda c: scaling(c, "awq").pop("downscale_delay_s"), "downscale_delay_s: 0"),
        (lambda c: scaling(c, "awq").update(upscale_delay_s=5), "upscale_delay_s: 0"),
        (lambda c: scaling(c, "fp8").update(min_replicas=0), "lacks it"),
        (lambda c: scaling(c, "awq").update(min_replicas=1), "names it"),
        (lambda c: c["applications"][1].update(name="other"), "same name"),
        (
            lambda c: c["applications"][0]["deployments"][0]["user_config"].update(
                sleepers=["awq", "gptq"]
            ),
            "sleepers",
        ),
    ],
)
def test_what_is_wrong_is_named(content, check, change, said):
    change(content)
    with pytest.raises(ConfigError, match=said):
        check()


def test_another_policy_is_the_users_own_affair(content, check):
    scaling(content, "fp8").pop("policy")
    scaling(content, "fp8").pop("upscale_delay_s")
    assert check() == ["awq", "fp8"]


@pytest.mark.parametrize("setting", [{"upscaling_factor": 2}, {"initial_replicas": 3}])
def test_settings_that_act_beside_the_policy_are_refused(content, check, setting):
    scaling(content, "fp8").update(setting)
    with pytest.raises(ConfigError, match=f"sets {next(iter(setting))}: Serve would change"):
        check()


def test_neutral_settings_beside_the_policy_pass(content, check):
    scaling(content, "fp8").update(upscaling_factor=1.0, downscale_to_zero_delay_s=0)
    assert check() == ["awq", "fp8"]
