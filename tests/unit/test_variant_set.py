"""Serve files that lose variants: what is left loads, serves the same, and looks as it did."""

from itertools import combinations
from pathlib import Path

import pytest
import yaml

from serve_app.config.serve_file import (
    check_serve_file,
    load_serve_file,
    router_user_config,
)
from serve_app.domain.errors import ConfigError
from serve_app.fleet.variant_set import with_variant_set

ROOT = Path(__file__).parents[2]
FILES = ("configs/local.yaml", "configs/local-gpu.yaml", "configs/prod.yaml")
SMALL = """\
applications:
  - name: router
    import_path: serve_app.app:router
    deployments:
      - name: VariantRouter
        user_config: {split: {a: 6000, b: 4000}, sleepers: [b]}  # live
  # the first
  - name: a
    import_path: serve_app.app:variant
    args:
      name: a
      engine: &engine  # sizes
        # of one replica
        max_num_seqs: 16

        threads: 1
  # the second
  - name: b
    import_path: serve_app.app:variant
    args: {name: b, engine: *engine}
  - name: c
    import_path: serve_app.app:variant
    args:
      name: c
      engine: *engine  # as a
"""
BLOCK_SPLIT = SMALL.replace(
    "user_config: {split: {a: 6000, b: 4000}, sleepers: [b]}  # live",
    "user_config:\n          split:\n            a: 6000\n            b: 4000\n"
    "            c: 0\n          # who stands in\n          fallback:\n            - a\n",
)


def variants(text: str) -> dict[str, dict]:
    return {
        item["args"]["name"]: item
        for item in yaml.safe_load(text)["applications"]
        if item["import_path"].endswith(":variant")
    }


def router(text: str) -> dict:
    return yaml.safe_load(text)["applications"][0]["deployments"][0]["user_config"]


@pytest.mark.parametrize("name", FILES)
def test_each_pair_of_a_shipped_file_can_be_kept_and_serves_as_before(name, tmp_path):
    path = ROOT / name
    text, before = path.read_text(), {args.name: args for args in check_serve_file(path)}
    for pair in combinations(before, 2):
        for first, second in (pair, pair[::-1]):
            after = with_variant_set(text, {first: 10_000, second: 0}, [first, second])
            copy = tmp_path / path.name
            copy.write_text(after)
            found = {args.name: args for args in check_serve_file(copy)}
            assert found == {kept: before[kept] for kept in before if kept in pair}
            content = load_serve_file(copy)
            config = router_user_config(content["applications"][0], copy)
            assert dict(config.split) == {first: 10_000, second: 0}
            assert config.fallback == (first, second)
            kept_lines = set(text.splitlines())
            new = [line for line in after.splitlines() if line not in kept_lines]
            assert len(new) <= 12, new  # the split, and anchors that were written out


@pytest.mark.parametrize("name", FILES)
def test_to_keep_all_changes_the_split_alone(name):
    text = (ROOT / name).read_text()
    names = list(variants(text))
    split = {each: 10_000 if each == names[-1] else 0 for each in names}
    after = with_variant_set(text, split, names[::-1])
    changed = [(a, b) for a, b in zip(text.splitlines(), after.splitlines(), strict=True) if a != b]
    assert 1 <= len(changed) <= 2
    assert with_variant_set(after, split, names[::-1]) == after


def test_an_anchor_that_goes_is_written_out_where_it_is_used_next():
    after = with_variant_set(SMALL, {"c": 10_000}, ["c"])
    assert after == SMALL[: SMALL.index("  # the first")].replace(
        "{split: {a: 6000, b: 4000}, sleepers: [b]}",
        "{split: {c: 10000}, sleepers: [], fallback: [c]}",
    ) + """\
  - name: c
    import_path: serve_app.app:variant
    args:
      name: c
      engine: &engine  # as a
        # of one replica
        max_num_seqs: 16

        threads: 1
"""  # fmt: skip


def test_comments_above_a_variant_go_with_it_and_others_stay():
    after = with_variant_set(SMALL, {"a": 9_000, "c": 1_000}, ["a"])
    assert "# the first" in after and "# the second" not in after and "# live" in after
    assert router(after) == {"split": {"a": 9_000, "c": 1_000}, "sleepers": [], "fallback": ["a"]}


def test_a_split_written_as_a_block_becomes_one_line():
    after = with_variant_set(BLOCK_SPLIT, {"a": 10_000, "c": 0}, ["a", "c"])
    assert "          split: {a: 10000, c: 0}\n          # who stands in\n" in after
    assert "          fallback: [a, c]\n" in after


def test_a_block_that_moves_into_braces_comes_on_one_line():
    after = with_variant_set(SMALL, {"b": 10_000, "c": 0}, ["b"])
    assert "    args: {name: b, engine: &engine {max_num_seqs: 16, threads: 1}}\n" in after
    assert variants(after)["c"]["args"]["engine"] == {"max_num_seqs": 16, "threads": 1}


def test_what_cannot_be_moved_is_refused_and_the_error_says_what_to_do():
    nested = SMALL.replace("max_num_seqs: 16\n", "max_num_seqs: &n 16\n        other: *n\n")
    nested = nested.replace(
        "        # of one replica\n        max_num_seqs: &n 16\n", "        x: *m\n"
    )
    nested = nested.replace("  # the first\n", "").replace("*n", "*m")
    nested = nested.replace("{a: 6000, b: 4000}", "{a: &m 6000, b: 4000}")
    with pytest.raises(ConfigError, match=r"by hand: keep .* of b, and set split: \{b: 10000\}"):
        with_variant_set(nested, {"b": 10_000}, ["b"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("applications: 3", "needs a list"),
        ("a: [", "no YAML"),
        (SMALL.replace("applications:\n", "a: &x\n").replace("a: &x\n", "applications:\n", 1)
         .replace("    deployments:\n      - name: VariantRouter\n", "    deployments: &d\n"
                  "      - name: VariantRouter\n").replace("serve_app.app:router", "other"),
         "no router"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_ours_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        with_variant_set(text, {"a": 10_000} if "name: a" in text else {}, ["a"])


def test_an_unknown_variant_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match="no variant z; has a, b, c"):
        with_variant_set(SMALL, {"z": 10_000}, ["z"])


def test_line_ends_of_windows_stay():
    crlf = SMALL.replace("\n", "\r\n")
    after = with_variant_set(crlf, {"a": 10_000, "c": 0}, ["a"])
    assert variants(after).keys() == {"a", "c"}
    assert "\n" not in after.replace("\r\n", "")
