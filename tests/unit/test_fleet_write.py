from pathlib import Path

import pytest
import yaml

from serve_app.domain.errors import ConfigError
from serve_app.fleet.write import set_planned, write_planned

PLANNED = {
    "engine": {"kv_cache_memory_bytes": 123, "gpu_memory_utilization": 0.25},
    "gpu": {"type": "L4", "fraction": 0.3},
}
BLOCK = """\
applications:
  - name: awq  # four bits
    import_path: serve_app.app:variant
    args:
      name: awq
      engine:  # sizes
        kv_cache_memory_bytes: 7  # from the plan
        max_num_seqs: 16   # ours

      gpu: {type: T4}  # where
    # after the args

  - name: router
    import_path: serve_app.app:router
"""
ALIASED = """\
applications:
  - import_path: serve_app.app:variant
    args:
      name: a
      engine: &engine
        kv_cache_memory_bytes: 7
      gpu: &gpu {type: T4}
  - import_path: serve_app.app:variant
    args:
      name: b
      gpu: *gpu  # the same
      engine: *engine  # shared
"""


def args_of(text: str, name: str) -> dict:
    applications = yaml.safe_load(text)["applications"]
    return next(item["args"] for item in applications if item.get("args", {}).get("name") == name)


def test_values_are_replaced_and_added_where_they_belong_and_comments_stay():
    after = set_planned(BLOCK, {"awq": PLANNED})
    assert after == BLOCK.replace(
        "kv_cache_memory_bytes: 7  #", "kv_cache_memory_bytes: 123  #"
    ).replace(
        "max_num_seqs: 16   # ours\n",
        "max_num_seqs: 16   # ours\n        gpu_memory_utilization: 0.2500\n",
    ).replace("{type: T4}", "{type: L4, fraction: 0.3000}")


def test_writing_twice_changes_nothing():
    once = set_planned(BLOCK, {"awq": PLANNED})
    assert set_planned(once, {"awq": PLANNED}) == once


def test_a_section_that_is_not_there_is_added():
    text = BLOCK.replace("      gpu: {type: T4}  # where\n", "")
    after = set_planned(text, {"awq": PLANNED})
    assert args_of(after, "awq")["gpu"] == {"type": "L4", "fraction": 0.3}
    assert "# after the args" in after


def test_an_alias_is_extended_and_what_others_share_is_not_touched():
    after = set_planned(ALIASED, {"b": PLANNED})
    assert args_of(after, "a") == args_of(ALIASED, "a")
    assert args_of(after, "b")["engine"] == PLANNED["engine"]
    assert args_of(after, "b")["gpu"] == PLANNED["gpu"]
    assert "# the same" in after
    assert "# shared" in after
    assert set_planned(after, {"b": PLANNED}) == after


def test_both_sides_of_an_alias_get_their_own_numbers():
    other = {"engine": {"kv_cache_memory_bytes": 9, "gpu_memory_utilization": 0.5}}
    after = set_planned(ALIASED, {"a": other, "b": PLANNED})
    assert args_of(after, "a")["engine"]["kv_cache_memory_bytes"] == 9
    assert args_of(after, "b")["engine"]["kv_cache_memory_bytes"] == 123


def test_a_variant_that_the_file_lacks_is_named():
    with pytest.raises(ConfigError, match="no variant gptq; has awq"):
        set_planned(BLOCK, {"gptq": PLANNED})


@pytest.mark.parametrize("name", ["local", "local-gpu"])
def test_the_shipped_files_keep_everything_but_the_numbers(name, tmp_path):
    shipped = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    copy = tmp_path / "copy.yaml"
    copy.write_text(shipped.read_text())
    variants = ["bf16", "int8", "gptq", "awq"]
    assert write_planned(copy, dict.fromkeys(variants, PLANNED))
    assert not write_planned(copy, dict.fromkeys(variants, PLANNED))
    before, after = yaml.safe_load(shipped.read_text()), yaml.safe_load(copy.read_text())
    for old, new in zip(before["applications"], after["applications"], strict=True):
        for section, values in PLANNED.items() if "method" in old["args"] else ():
            merged = {**old["args"].get(section, {}), **values}
            assert new["args"][section] == merged
            old["args"][section] = new["args"][section] = {}
        assert old == new
    comments = [line[line.index("#") :] for line in shipped.read_text().splitlines() if "#" in line]
    assert all(comment in copy.read_text() for comment in comments)
