"""The one value of a Serve config that a rollout changes."""

import copy

import pytest
import yaml

from serve_app.domain.errors import ConfigError
from serve_app.rollouts.rayservice import changed_text
from serve_app.splits.live_split import (
    SplitChangedError,
    path_of_split,
    require_expected,
    same_shares,
    shares_at,
    split_at,
    with_split,
)

TEXT = """\
# the shop window
proxy_location: HeadOnly
applications:
  - name: other  # stays
    import_path: other:app
  - name: router
    import_path: serve_app.app:router
    args: {model: m}
    deployments:
      - name: VariantRouter
        num_replicas: 2
        user_config:
          split: {int8: 9000, gptq: 1000}  # by hand
          fallback: [int8, gptq]
          aliases:
            fast:
              # another name
              split:
                int8: 0
                gptq: 10000
"""


def applications() -> list:
    return yaml.safe_load(TEXT)["applications"]


@pytest.mark.parametrize(
    ("model", "have"), [("m", {"int8": 9000, "gptq": 1000}), ("fast", {"int8": 0, "gptq": 10_000})]
)
def test_only_the_split_of_the_model_changes(model, have):
    before = applications()
    at = path_of_split(before, "router", model)
    assert split_at(before, at) == have
    after = with_split(before, at, {"int8": 1, "gptq": 9999})
    assert before == applications()
    assert split_at(after, at) == {"int8": 1, "gptq": 9999}
    assert with_split(after, at, have) == before


@pytest.mark.parametrize("model", ["m", "fast"])
def test_the_text_of_a_rayservice_keeps_its_comments(model):
    at = path_of_split(applications(), "router", model)
    wanted = {"int8": 5000, "gptq": 5000}
    after = changed_text(TEXT, applications(), at, wanted)
    for comment in ("# the shop window", "# stays", "# by hand", "# another name"):
        assert comment in after
    assert yaml.safe_load(after)["applications"] == with_split(applications(), at, wanted)
    changed = [line for line in after.splitlines() if line not in TEXT.splitlines()]
    assert len(changed) == 1


def test_a_split_that_is_an_alias_is_written_out():
    text = TEXT.replace("split: {int8: 9000, gptq: 1000}", "split: &s {int8: 9000, gptq: 1000}")
    text = text.replace(
        "split:\n                int8: 0\n                gptq: 10000\n", "split: *s\n"
    )
    at = path_of_split(yaml.safe_load(text)["applications"], "router", "fast")
    wanted = {"int8": 1, "gptq": 9999}
    after = yaml.safe_load(changed_text(text, yaml.safe_load(text)["applications"], at, wanted))
    assert split_at(after["applications"], at) == wanted
    own = path_of_split(after["applications"], "router", "m")
    assert split_at(after["applications"], own) == {"int8": 9000, "gptq": 1000}


@pytest.mark.parametrize(
    ("application", "model", "message"),
    [
        ("route", "m", "there is: other, router"),
        ("other", "m", "no deployment VariantRouter"),
        ("router", "mm", "it serves m, fast"),
    ],
)
def test_a_split_that_is_not_there_is_said_to_be_missing(application, model, message):
    with pytest.raises(ConfigError, match=message):
        path_of_split(applications(), application, model)


def test_the_ladder_and_a_rollout_do_not_move_the_same_shares():
    content = copy.deepcopy(applications())
    content[1]["deployments"][0]["user_config"]["ladder"] = {"rungs": ["int8", "gptq"]}
    with pytest.raises(ConfigError, match="deploy without `ladder`"):
        path_of_split(content, "router", "m")
    assert path_of_split(content, "router", "fast")


@pytest.mark.parametrize(
    ("step_bp", "shares"),
    [
        (0, {"bf16": 4000, "int8": 6000, "gptq": 0}),
        (1, {"bf16": 4000, "int8": 5999, "gptq": 1}),
        (2500, {"bf16": 4000, "int8": 4500, "gptq": 1500}),
        (10_000, {"bf16": 4000, "int8": 0, "gptq": 6000}),
    ],
)
def test_the_candidate_takes_its_share_from_the_baseline_alone(step_bp, shares):
    original = {"bf16": 4000, "int8": 5500, "gptq": 500}
    assert shares_at(original, "int8", "gptq", step_bp) == shares


def test_no_traffic_to_share_out_is_an_error():
    with pytest.raises(ConfigError, match="no traffic"):
        shares_at({"bf16": 10_000, "int8": 0, "gptq": 0}, "int8", "gptq", 100)


def test_a_share_of_0_is_no_difference():
    assert same_shares({"a": 10_000, "b": 0}, {"a": 10_000})
    require_expected({"a": 10_000}, {"b": 0, "a": 10_000})
    with pytest.raises(SplitChangedError, match="a 9999, b 1"):
        require_expected({"a": 9999, "b": 1}, {"a": 10_000})
