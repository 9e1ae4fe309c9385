"""Which devices a replica has, what is free on them, and whose it is."""

import os

import psutil
import pytest

from serve_app.domain.errors import ConfigError, EngineError
from serve_app.domain.units import GIB
from serve_app.node.devices import Holding
from serve_app.node.host import HostMemory, cpu_model
from serve_app.node.nvml import NvmlDevice, assigned_gpus
from tests.fakes.nvml import Card, FakeNvml

MINE, OTHER, STRANGER = 1001, 1002, 9999


@pytest.fixture
def nvml(monkeypatch):
    cards = [Card("GPU-aaaa-1"), Card("GPU-aabb-2"), Card("GPU-cccc-3"), Card("MIG-dddd-4")]
    return FakeNvml(*cards).install(monkeypatch)


def keys(visible: str | None, count: int = 1) -> list[str]:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return [device.key for device in assigned_gpus(count, environ)]


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        ("1", 1, ["GPU-aabb-2"]),
        ("2,0", 2, ["GPU-cccc-3", "GPU-aaaa-1"]),
        ("2,0", 1, ["GPU-cccc-3"]),
        ("GPU-cccc-3", 1, ["GPU-cccc-3"]),
        ("GPU-aab", 1, ["GPU-aabb-2"]),
        ("MIG-dddd-4", 1, ["MIG-dddd-4"]),
        (None, 2, ["GPU-aaaa-1", "GPU-aabb-2"]),
    ],
)
def test_the_devices_are_those_that_ray_assigned(nvml, visible, count, expected):
    assert keys(visible, count) == expected


@pytest.mark.parametrize(("visible", "count"), [("", 1), ("0", 2)])
def test_fewer_gpus_than_the_engine_needs_are_refused(nvml, visible, count):
    with pytest.raises(ConfigError, match=rf"needs {count} GPU.*gives this replica {count - 1}"):
        keys(visible, count)


def test_a_gpu_that_is_not_there_is_refused(nvml):
    with pytest.raises(ConfigError, match="'GPU-ffff'"):
        keys("GPU-ffff")
    with pytest.raises(EngineError, match="Invalid Argument"):
        keys("7")


def test_without_a_driver_the_error_says_what_is_needed(nvml):
    nvml.broken = "NVML Shared Library Not Found"
    with pytest.raises(EngineError, match=r"Library Not Found; need NVIDIA's driver"):
        keys("0")


def test_a_card_describes_itself(nvml):
    nvml.cards[0].free = 3 * GIB
    device = NvmlDevice(nvml.cards[0])
    assert (device.total_bytes(), device.free_bytes()) == (24 * GIB, 3 * GIB)
    profile = device.profile()
    assert (profile.name, profile.usable_bytes) == ("NVIDIA L4", 23 * GIB)
    assert profile.compute_capability == (8, 9)


@pytest.mark.parametrize(
    ("processes", "held"),
    [
        ([(MINE, 5), (OTHER, 7)], 5),
        ([(MINE, 5), (MINE + 10, 6)], 11),
        ([], None),  # a container that is told nothing
        ([(OTHER, 7)], None),  # PIDs of the host: ours is not among them
        ([(MINE, 5), (STRANGER, 7)], None),  # of the host, and one is by chance ours too
        ([(MINE, None)], None),  # NVML does not give the figure
    ],
)
def test_memory_is_attributed_or_said_to_be_unknown_but_never_zero(nvml, processes, held):
    nvml.cards[0].processes = processes
    device = NvmlDevice(nvml.cards[0], pid_exists=lambda pid: pid != STRANGER)
    assert device.used_by([MINE, MINE + 10]) == held


def test_holders_come_largest_first(nvml):
    nvml.cards[0].processes = [(1, 5), (2, None), (3, 9)]
    found = NvmlDevice(nvml.cards[0]).holders()
    assert found == [Holding(3, 9), Holding(1, 5), Holding(2, None)]


def cgroup(tmp_path, lines: list[str], files: dict[str, str]) -> HostMemory:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))
    for name, text in files.items():
        path = tmp_path / "cg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "cg").mkdir(exist_ok=True)
    return HostMemory(tmp_path / "proc", tmp_path / "cg")


def test_host_memory_without_a_limit_is_the_machines(tmp_path):
    host = cgroup(
        tmp_path, ["0::/a"], {"a/memory.max": "max\n", "a/memory.current": "5", "a/memory.stat": ""}
    )
    assert host.key == "host"
    assert host.total_bytes() == psutil.virtual_memory().total
    assert 0 < host.free_bytes() <= host.total_bytes()


def test_the_limit_of_a_container_counts_and_its_page_cache_is_free(tmp_path):
    files = {
        "a/b/memory.max": "max",
        "a/b/memory.current": "50",
        "a/b/memory.stat": "inactive_file 1\n",
        "a/memory.max": "1000\n",
        "a/memory.current": "700\n",
        "a/memory.stat": "anon 300\ninactive_file 400\n",
    }
    host = cgroup(tmp_path, ["0::/a/b"], files)
    assert (host.total_bytes(), host.free_bytes()) == (1000, 700)


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path):
    """The path of /proc is the host's; what is mounted is the container's."""
    files = {"memory.max": "900", "memory.current": "950", "memory.stat": "inactive_file 0\n"}
    host = cgroup(tmp_path, ["0::/docker/0123"], files)
    assert (host.total_bytes(), host.free_bytes()) == (900, 0)


def test_the_older_cgroups(tmp_path):
    files = {
        "memory/x/memory.limit_in_bytes": "800",
        "memory/x/memory.usage_in_bytes": "300",
        "memory/x/memory.stat": "inactive_file 7\ntotal_inactive_file 100\n",
        "memory/memory.limit_in_bytes": str(2**63 - 4096),
        "memory/memory.usage_in_bytes": "300",
        "memory/memory.stat": "",
    }
    host = cgroup(tmp_path, ["5:cpu,cpuacct:/y", "4:memory:/x", "0::/"], files)
    assert (host.total_bytes(), host.free_bytes()) == (800, 600)


def test_host_memory_of_processes(tmp_path):
    host = HostMemory()
    mine = host.used_by([os.getpid()])
    assert mine is not None
    assert 0 < mine <= psutil.Process().memory_info().rss
    assert host.used_by([2**22 + 1]) == 0
    assert len(host.holders()) >= 1
    sizes = [holding.bytes for holding in host.holders()]
    assert sizes == sorted(sizes, reverse=True)


def test_the_processors_own_name_or_none(tmp_path):
    assert cpu_model(tmp_path) is None
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert cpu_model(tmp_path) is None, "ARM has no such line"
    line = "model name\t: Intel(R) Xeon(R) @ 2.0: GHz\n"
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\nprocessor\t: 1\n{line}")
    assert cpu_model(tmp_path) == "Intel(R) Xeon(R) @ 2.0: GHz"
