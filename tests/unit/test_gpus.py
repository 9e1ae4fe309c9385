import re

import pytest
import yaml

from serve_app.config.gpus import CATALOGUE, find_gpu, load_gpus, recognise_gpu
from serve_app.domain.errors import ConfigError
from serve_app.domain.units import GIB, MIB

GPUS = load_gpus()


def test_the_catalogue_has_the_types_that_are_promised():
    promised = ["T4", "A10G", "L4", "L40S", "A100-40GB", "A100-80GB", "H100", "H200", "B200"]
    assert set(promised) <= set(GPUS)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
def test_the_usable_memory_is_the_least_that_was_printed(gpu):
    """Each entry quotes what CUDA printed; `usable_bytes` must not be above the smallest of it."""
    source = yaml.safe_load(CATALOGUE.read_text())[gpu.name]["source"]["reserved_mib"]
    quoted = re.search(r"(?:capacity of|total_gpu_memory|Global Memory) (\d+\.\d+)", source)
    assert quoted, source
    printed_bytes = float(quoted[1]) * GIB
    assert printed_bytes - 0.01 * GIB < gpu.usable_bytes <= printed_bytes - 0.004 * GIB


def test_what_a_user_of_an_l4_sees():
    l4 = GPUS["L4"]
    assert l4.total_bytes == 23034 * MIB
    assert l4.usable_bytes == 22481 * MIB
    assert l4.compute_capability == (8, 9)
    assert l4.accelerator_type == "L4"


def test_an_unknown_type_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'V100' is no GPU type.*T4, A10G, L4"):
        find_gpu(GPUS, "V100")
    assert find_gpu(GPUS, "H200") is GPUS["H200"]


def written(tmp_path, **changes):
    entry = yaml.safe_load(CATALOGUE.read_text())["L4"] | changes
    file = tmp_path / "gpus.yaml"
    file.write_text(yaml.safe_dump({"L4": {k: v for k, v in entry.items() if v != "gone"}}))
    return file


def test_a_price_of_ones_own(tmp_path):
    assert load_gpus(written(tmp_path, price_usd_per_hour=0.3))["L4"].price_usd_per_hour == 0.3
    assert load_gpus(written(tmp_path, price_usd_per_hour=None))["L4"].price_usd_per_hour is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_mb": 1}, "L4: total_mb is not a known key"),
        ({"total_mib": "gone"}, "total_mib is required"),
        ({"source": {"total_mib": "x"}}, "source.reserved_mib is required"),
        ({"compute_capability": 8.9}, "compute_capability"),
        ({"reserved_mib": 23034}, "leaves nothing"),
        ({"reserved_mib": -1}, "reserved_mib"),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_gpus(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "message"), [("- a", "no GPU catalogue"), ("L4: 5", "L4 holds 5"), ("{", "not YAML")]
)
def test_a_file_that_is_no_catalogue_is_refused(tmp_path, text, message):
    file = tmp_path / "gpus.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_gpus(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_gpus(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("device", "total_mib", "name"),
    [
        ("Tesla T4", 15360, "T4"),
        ("NVIDIA A100-SXM4-40GB", 40960, "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", 81920, "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", 81920, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", 81559, "H100"),
        ("NVIDIA H100 NVL", 95830, "H100-NVL"),
        ("NVIDIA L4", 23034, "L4"),
        ("NVIDIA L40S", 46068, "L40S"),
        ("NVIDIA L4", 11517, None),  # a slice of a card
        ("NVIDIA L40", 46068, None),
        ("NVIDIA GeForce RTX 4090", 24564, None),
    ],
)
def test_a_card_is_recognised_by_name_and_size(device, total_mib, name):
    gpu = recognise_gpu(GPUS, device, total_mib * MIB)
    assert (gpu.name if gpu else None) == name
