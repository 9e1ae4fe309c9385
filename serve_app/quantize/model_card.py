"""The model card: `README.md` in Hugging Face's format, from a variant's own records."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from serve_app.domain.units import format_bytes
from serve_app.quantize.gate import shown
from serve_app.reference.locate import QUANTIZE_JSON
from serve_app.store.manifest import CARD_MD, read_manifest, write_whole
from serve_app.store.seal import GateFile, Judgement, read_gate

_LAYERS_SHOWN = 8


def write_card(folder: Path) -> None:
    """Write the card of the variant in `folder`, from its record, manifest and gate's verdict."""
    record = json.loads((folder / QUANTIZE_JSON).read_text(encoding="utf-8"))
    manifest = read_manifest(folder)
    n_bytes = manifest.total_bytes if manifest else 0
    write_whole(folder / CARD_MD, card_text(record, n_bytes, read_gate(folder)))


def card_text(record: Mapping[str, Any], n_bytes: int, gate: GateFile | None) -> str:
    """The card. `n_bytes`: of all files that the manifest lists."""
    from huggingface_hub import ModelCardData

    scheme = record["scheme"]
    data = ModelCardData(
        base_model=record["base"],
        base_model_relation="quantized",
        library_name=record["engine"]["kind"].replace("llamacpp", "llama.cpp"),
        pipeline_tag="text-generation",
        tags=["quantile", record["method"], scheme["container"], f"{scheme['bits']}-bit"],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {record['base']}: {record['variant']}",
        f"{_sentence(record['summary'])} Made by QuanTile, {format_bytes(n_bytes)} of files.",
        "## Quantization",
        _table(_facts(record)),
        "## Calibration",
        _calibration(record["calibration"]),
        "## Weight error",
        _weight_error(record["weight_error"]),
        "## Correctness gate",
        _gate(gate),
        "## Use",
        _use(record),
        "## Limits",
        "What quantization does to answers depends on the task: judge it on yours with "
        "`quantile eval` before it gets traffic. It inherits the base model's licence, biases and "
        "limits.",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    scheme, recipe = record["scheme"], record["recipe"]["make"]
    yield "method", str(record["method"])
    yield "weights", f"{scheme['bits']} bits"
    yield "activations", f"{scheme['activation_bits']} bits"
    if scheme["group_size"]:
        yield "group size", f"{scheme['group_size']} input channels"
    yield "symmetric", "yes" if scheme["symmetric"] else "no (zero points)"
    yield "format", scheme["container"]
    if twin := record.get("twin_of"):
        yield "stand-in", f"dequantized weights of {twin.get('variant', 'another folder')}"
    for step in recipe.get("steps", ()):
        given = ", ".join(f"{key} {value}" for key, value in step.items() if key != "do")
        yield "step", f"{step['do']}{f' ({given})' if given else ''}"
    if recipe.get("keep"):
        yield "left as they are", ", ".join(f"`{name}`" for name in recipe["keep"])
    yield "made in", f"{record['wall_seconds']} s"
    yield from record["libraries"].items()


def _calibration(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return "None: the method needs no text."
    return (
        f"{calibration['samples']} rows of {calibration['length_tokens']} tokens from "
        f"{calibration['source']} (SHA-256 `{calibration['source_sha256'][:16]}`; tokens "
        f"`{calibration['tokens_sha256'][:16]}`)."
    )


def _weight_error(errors: Mapping[str, Any]) -> str:
    """By kind of layer, and the layers that lost most; all are in quantile.json."""
    changed = [layer for layer in errors["layers"] if layer["relative"]]
    if not changed:
        return "The weights are the base model's."
    worst = sorted(changed, key=lambda layer: -layer["relative"])[:_LAYERS_SHOWN]
    kinds = [
        (kind, f"{found['relative']:.4f}")
        for kind, found in errors["by_kind"].items()
        if found["relative"]
    ]
    rows = [*kinds, *((f"`{layer['name']}`", f"{layer['relative']:.4f}") for layer in worst)]
    return (
        f"Relative error ‖W − W_q‖ / ‖W‖, by kind and of the {len(worst)} layers with most of "
        f"{len(changed)}; all are in `quantile.json`.\n\n" + _table(rows, ("layers", "error"))
    )


def _gate(gate: GateFile | None) -> str:
    if gate is None:
        return "Not judged yet: QuanTile does not serve it."
    return "\n\n".join(map(_judgement, gate.judgements))


def _judgement(found: Judgement) -> str:
    result = found.result
    text = (
        f"**{'Passed' if found.passed else 'FAILED'}** with {found.key['engine']}, "
        f"{found.key['dtype']}, on {found.key['machine']}: over {result['n_tokens']:,} tokens the "
        "engine differs from an fp32 forward pass of the dequantized weights by "
        f"{shown(result['engine_mean'], '.4f')} nats on average, and the weights from the base "
        f"model's by {shown(result['quantization_mean'], '.4f')}."
    )
    if found.judged == "twin":
        text += " Judged through its dequantized twin: no engine on that machine runs the format."
    return text


def _use(record: Mapping[str, Any]) -> str:
    kind, dtype = record["engine"]["kind"], record["engine"]["dtype"]
    engine = f"kind: {kind}, dtype: {dtype}" if kind == "vllm" else f"kind: {kind}"
    return (
        "As a variant of a QuanTile configuration:\n\n```yaml\n"
        f"checkpoint: /path/to/this/folder\nmethod: {record['method']}\n"
        f"engine: {{{engine}}}\n```"
    )


def _table(
    rows: Iterator[tuple[str, str]] | list[tuple[str, str]], head: tuple[str, str] = ("", "")
) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows])


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
