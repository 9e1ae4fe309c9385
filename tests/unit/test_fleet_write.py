import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

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


ENGINE, GPU = (
    "kv_cache_memory_bytes: 123, gpu_memory_utilization: 0.2500",
    "type: L4, fraction: 0.3000",
)


def one_variant(sections: str, top: str = "") -> str:
    """A file of one variant `a`; `sections` stand in its args, `top` before the applications."""
    head = "applications:\n  - import_path: serve_app.app:variant\n    args:\n      name: a\n"
    return top + head + "".join(f"      {line}\n" for line in sections.splitlines())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("engine: {}  # c", f"engine: {{{ENGINE}}}  # c"),
        ("engine: { }", f"engine: {{ {ENGINE}}}"),
        ("engine:  # c", f"engine: {{{ENGINE}}}  # c"),
        ("engine: ~  # c", f"engine: {{{ENGINE}}}  # c"),
        ("engine: {dtype: auto,}", f"engine: {{dtype: auto, {ENGINE},}}"),
        ("engine: {dtype: auto ,}", f"engine: {{dtype: auto, {ENGINE} ,}}"),
        (
            "engine: {\n  dtype: auto,  # c\n  max_num_seqs: 16  # d\n}",
            f"engine: {{\n  dtype: auto,  # c\n  max_num_seqs: 16, {ENGINE}  # d\n}}",
        ),
        (
            "engine: {\n  dtype: auto,  # c\n}",
            f"engine: {{\n  dtype: auto, {ENGINE},  # c\n}}",
        ),
        (
            "engine:\n  kv_cache_memory_bytes:  # c\n  gpu_memory_utilization:",
            "engine:\n  kv_cache_memory_bytes: 123  # c\n  gpu_memory_utilization: 0.2500",
        ),
        (
            "engine: {kv_cache_memory_bytes: , gpu_memory_utilization: null}",
            "engine: {kv_cache_memory_bytes: 123 , gpu_memory_utilization: 0.2500}",
        ),
        (
            """engine: {"kv_cache_memory_bytes":"7","gpu_memory_utilization":'0.5'}""",
            """engine: {"kv_cache_memory_bytes":123,"gpu_memory_utilization":0.2500}""",
        ),
        (
            "engine:\n  # first\n  dtype: |  # c\n    auto\n\n  # last",
            "engine:\n  # first\n  dtype: |  # c\n    auto\n"
            f"  {ENGINE.replace(', ', chr(10) + '  ')}\n\n  # last",
        ),
    ],
)
def test_a_section_takes_the_numbers_in_its_own_form(before, after):
    text = set_planned(one_variant(before), {"a": {"engine": PLANNED["engine"]}})
    assert text == one_variant(after)


def test_a_number_that_stands_by_alias_is_replaced_in_the_place_of_the_alias():
    before = "gpu: {type: L4, fraction: &f 0.9}\nengine: {gpu_memory_utilization: *f}  # same"
    text = set_planned(one_variant(before), {"a": PLANNED})
    assert text == one_variant(
        "gpu: {type: L4, fraction: &f 0.3000}\n"
        "engine: {gpu_memory_utilization: 0.2500, kv_cache_memory_bytes: 123}  # same"
    )


def test_a_number_that_stays_is_written_where_its_anchor_changes():
    before = "gpu: {type: L4, fraction: &f 0.25}\nengine: {gpu_memory_utilization: *f}"
    text = set_planned(one_variant(before), {"a": PLANNED})
    assert args_of(text, "a")["engine"] == PLANNED["engine"]


def test_a_section_that_comes_by_merge_keeps_its_other_keys():
    top = "common: &common\n  engine: &sizes {dtype: auto, max_num_seqs: 16}\n"
    before = one_variant("<<: *common\ngpu: {type: L4}", top)
    text = set_planned(before, {"a": PLANNED})
    assert text == one_variant(
        f"<<: *common\ngpu: {{type: L4, fraction: 0.3000}}\nengine: {{<<: *sizes, {ENGINE}}}", top
    )
    assert args_of(text, "a")["engine"] == {
        **PLANNED["engine"],
        "dtype": "auto",
        "max_num_seqs": 16,
    }


def test_a_merge_of_several_mappings_is_searched_for_the_section():
    top = "common: [&one {model: m}, &two {engine: &sizes {dtype: auto}}]\n"
    text = set_planned(one_variant("<<: [*one, *two]", top), {"a": PLANNED})
    assert args_of(text, "a")["engine"] == {"dtype": "auto", **PLANNED["engine"]}


def test_a_number_that_equals_nothing_elsewhere_in_the_file_does_no_harm():
    before = one_variant("engine: {}", "nothing: .nan\n")
    after = set_planned(before, {"a": {"engine": PLANNED["engine"]}})
    assert after == before.replace("{}", f"{{{ENGINE}}}")


def test_args_by_alias_are_extended_through_their_sections():
    text = """\
shared: &args {name: a, engine: &sizes {dtype: auto}}
applications:
  - {import_path: "serve_app.app:variant", args: *args}
"""
    after = set_planned(text, {"a": PLANNED})
    extended = f"{{<<: *args, engine: {{<<: *sizes, {ENGINE}}}, gpu: {{{GPU}}}}}"
    assert after == text.replace("args: *args", f"args: {extended}")


POLICY = """\
gpu: &gpu {type: T4}
engine: {dtype: auto}
"""
POLICY_END = "    deployments:\n      - {name: VariantServer, policy_kwargs: {gpu: *gpu}}\n"


def test_a_variants_own_alias_of_a_section_goes_with_it():
    after = yaml.safe_load(set_planned(one_variant(POLICY) + POLICY_END, {"a": PLANNED}))
    (application,) = after["applications"]
    assert application["args"]["gpu"] == PLANNED["gpu"]
    assert application["deployments"][0]["policy_kwargs"]["gpu"] == PLANNED["gpu"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (one_variant("<<: {engine: {dtype: auto}}"), r"line 5 comes by `<<` and has no anchor"),
        (
            one_variant("engine:\n  kv_cache_memory_bytes: |\n    7"),
            "no value of one line: set 123",
        ),
        (
            one_variant("engine: {kv_cache_memory_bytes: &n # c\n  7}"),
            "no value of one line: set 123",
        ),
        (one_variant("engine:\n  kv_cache_memory_bytes: | # c").rstrip(), "one line: set 123"),
        (one_variant("engine: {kv_cache_memory_bytes: [7]}"), "no value of one line: set 123"),
        (one_variant("engine: !!map"), "no YAML that Ray Serve can load"),
        (one_variant("engine: {kv_cache_memory_bytes: !!str 7}"), "a would come out otherwise"),
        (one_variant("engine: &e {}", "") + "other: *e\n", "more than the variants"),
        (one_variant("engine: 5"), "5 stands where a mapping must"),
        (one_variant("engine: {dtype: auto}\t# c"), "no YAML that Ray Serve can load"),
        ("applications: &all []\n", "no variant a"),
        ("applications: 3\n", "needs a list `applications`"),
        (one_variant(POLICY) + POLICY_END.replace("{gpu: *gpu}", "{gpu: {<<: *gpu}}"), "otherwise"),
    ],
)
def test_what_cannot_be_set_alone_is_refused_and_the_file_stays(text, reason, tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        write_planned(path, {"a": PLANNED})
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_variant_without_a_plan_that_shares_the_numbers_is_named():
    with pytest.raises(ConfigError, match="b would come out otherwise") as refused:
        set_planned(ALIASED, {"a": PLANNED})
    assert f"a: {{engine: {{{ENGINE}}}, gpu: {{{GPU}}}}}" in str(refused.value)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_bytes_around_the_numbers_stay(start, end, tmp_path):
    text = start + one_variant("# \t grün\nengine:\n  dtype: auto  # \t end").rstrip("\n")
    path = tmp_path / "serve.yaml"
    path.write_bytes(text.replace("\n", end).encode())
    assert write_planned(path, {"a": {"engine": {"max_num_seqs": 4}}})
    after = f"{text}\n        max_num_seqs: 4".replace("\n", end)
    assert path.read_bytes() == after.encode()


def test_a_link_and_the_files_mode_stay(tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    path, link = folder / "serve.yaml", tmp_path / "link.yaml"
    path.write_text(BLOCK)
    path.chmod(0o640)
    link.symlink_to(path)
    assert write_planned(link, {"awq": PLANNED})
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert args_of(path.read_text(), "awq")["gpu"] == PLANNED["gpu"]
    assert list(folder.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_file_and_nothing_else(tmp_path, monkeypatch):
    """Patched, since a disk cannot be filled here."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serve_app.fleet.write.shutil.copymode", fail)
    path = tmp_path / "serve.yaml"
    path.write_text(BLOCK)
    with pytest.raises(ConfigError, match=r"serve.yaml: No space left"):
        write_planned(path, {"awq": PLANNED})
    assert path.read_text() == BLOCK
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        write_planned(path, {"a": PLANNED})


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"serve.yaml: No such file"):
        write_planned(tmp_path / "serve.yaml", {"a": PLANNED})


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


SHARED = """\
shared: &shared  # 1000
  engine: &shared_engine {max_num_seqs: 16, kv_cache_memory_bytes: 7}  # 1001
  gpu: &shared_gpu
    type: T4  # 1002
bare: &bare {engine: {dtype: auto}, gpu: {type: T4}}
"""
COMMON_VALUES = ["{}", "'{}'", '"{}"', "~", ""]
RARE_VALUES = ["&{anchor} {}", "!!str {}", "|\n{indent}    {}", "[{}]", "*{anchor}"]
COMMON_FORMS = ["block", "flow", "comma", "lines", "empty", "null", "absent", "alias",
                "merge", "merge block", "anchor"]  # fmt: skip
KEYS = {
    "engine": {"max_num_seqs": 16, "kv_cache_memory_bytes": 7, "gpu_memory_utilization": 0.9},
    "gpu": {"type": "T4", "fraction": 0.9},
}


@st.composite
def serve_files(draw, common: bool):
    """A Serve config file in a mixture of YAML's forms, and the names of its variants."""
    serial = iter(range(1000))
    anchors: list[str] = []

    def comment() -> str:
        return draw(st.sampled_from(["", f"  # {next(serial)}", f" # \t{next(serial)}: x, y}}  "]))

    def value(plain, indent: str) -> str:
        form = draw(st.sampled_from(COMMON_VALUES if common else COMMON_VALUES + RARE_VALUES))
        if "&" in form:
            anchors.append(f"v{len(anchors)}")
        if "*" in form and not anchors:
            return str(plain)
        return form.format(plain, anchor=anchors[-1] if anchors else None, indent=indent)

    def section(name: str, indent: str, index: int) -> list[str]:
        form = draw(st.sampled_from(COMMON_FORMS))
        keys = draw(st.lists(st.sampled_from(list(KEYS[name])), unique=True, min_size=1))
        pairs = [f"{key}: {value(KEYS[name][key], indent)}" for key in keys]
        if form in ("flow", "comma", "lines", "merge", "anchor"):
            pairs = [pair.replace("|\n", "") for pair in pairs]
        entries = ", ".join(pairs)
        merge = f"<<: *shared_{name}"
        block = [f"{indent}  {pair}{comment() if '|' not in pair else ''}" for pair in pairs]
        lines = {
            "block": [f"{name}:{comment()}", *block],
            "flow": [f"{name}: {{{entries}}}{comment()}"],
            "comma": [f"{name}: {{ {entries} ,}}{comment()}"],
            "lines": [
                f"{name}: {{{comment()}",
                *(f"{indent}    {pair},{comment()}" for pair in pairs),
                f"{indent}  }}{comment()}",
            ],
            "empty": [f"{name}: {{}}{comment()}"],
            "null": [f"{name}:{comment()}"],
            "absent": [],
            "alias": [f"{name}: *shared_{name}{comment()}"],
            "merge": [f"{name}: {{{merge}, {entries}}}{comment()}"],
            "merge block": [f"{name}:{comment()}", f"{indent}  {merge}{comment()}", *block],
            "anchor": [f"{name}: &{name}{index} {{{entries}}}{comment()}"],
        }[form]
        return [f"{indent}{lines[0]}", *lines[1:]] if lines else []

    text, names = SHARED + "applications:\n", draw(st.sampled_from(["a", "ab", "abc"]))
    for index, name in enumerate(names):
        merges = ["", "<<: *shared"] if common else ["", "<<: *shared", "<<: *bare"]
        args = [f"      name: {name}{comment()}"]
        args += [f"      {merge}" for merge in [draw(st.sampled_from(merges))] if merge]
        for part in draw(st.permutations(["engine", "gpu"])):
            args += section(part, "      ", index)
            args += draw(st.sampled_from([[], [f"      # {next(serial)}"], [""]]))
        last = [
            f"    other: *{part}{index}" for part in KEYS if f"&{part}{index} " in "".join(args)
        ]
        rest = last if draw(st.booleans()) else ["    route_prefix: /"]
        head = f"  - import_path: serve_app.app:variant{comment()}"
        text += "\n".join([head, "    args:", *args, *rest, ""])
    if draw(st.booleans()):
        text = text.rstrip("\n")
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return draw(st.sampled_from(["", "\ufeff"])) + text, names


def plans(names: str):
    numbers = st.fixed_dictionaries(
        {
            "engine": st.fixed_dictionaries(
                {
                    "kv_cache_memory_bytes": st.sampled_from([7, 123]),
                    "gpu_memory_utilization": st.sampled_from([0.9, 0.25]),
                }
            ),
            "gpu": st.fixed_dictionaries(
                {"type": st.sampled_from(["T4", "L4"]), "fraction": st.sampled_from([0.9, 0.12345])}
            ),
        }
    )
    return st.dictionaries(st.sampled_from(names), numbers, min_size=1)


def check_what_was_written(before: str, after: str, planned: dict) -> None:
    """Against a plain rule: load, follow the variant's own alias, set, compare with types."""
    expected = yaml.safe_load(before)
    followed = [
        {part for part in KEYS if "other" in item and item["args"].get(part) is item["other"]}
        for item in expected["applications"]
    ]
    expected = json.loads(json.dumps(expected))
    for item, parts in zip(expected["applications"], followed, strict=True):
        for section, numbers in planned.get(item["args"]["name"], {}).items():
            rounded = {
                key: round(number, 4) if isinstance(number, float) else number
                for key, number in numbers.items()
            }
            item["args"][section] = {**(item["args"].get(section) or {}), **rounded}
            if section in parts:
                item["other"] = item["args"][section]
    found = yaml.safe_load(after)
    assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert re.findall(r"#[^\r\n]*", after) == re.findall(r"#[^\r\n]*", before)
    assert after.count("\r\n") == (after.count("\n") if "\r\n" in before else 0)
    assert after[-1:] == before[-1:] or not before.endswith("\n")
    assert set_planned(after, planned) == after


@settings(max_examples=50)
@given(st.data())
def test_the_usual_forms_take_the_numbers(data):
    before, names = data.draw(serve_files(common=True))
    planned = data.draw(plans(names))
    check_what_was_written(before, set_planned(before, planned), planned)


@settings(max_examples=50)
@given(st.data())
def test_any_form_takes_exactly_the_numbers_or_is_refused(data):
    before, names = data.draw(serve_files(common=False))
    planned = data.draw(plans(names))
    try:
        after = set_planned(before, planned)
    except ConfigError:
        return
    check_what_was_written(before, after, planned)
