"""Put variants through the gate, and keep the verdict beside what it was about."""

from collections.abc import Mapping

import msgspec

from serve_app.domain.errors import BuildError
from serve_app.quantize.gate import (
    Candidate,
    Gate,
    GateResult,
    result_from_json,
    result_to_json,
)
from serve_app.quantize.making import Report
from serve_app.quantize.model_card import write_card
from serve_app.quantize.setting import setting_here
from serve_app.store.manifest import GATE_JSON, read_manifest, write_whole
from serve_app.store.seal import GateFile, Judgement, read_gate


def stored_result(candidate: Candidate) -> GateResult | None:
    """The verdict beside the variant, if it is about these files, limits, machine and version."""
    gate, manifest = read_gate(candidate.folder), read_manifest(candidate.folder)
    if gate is None or manifest is None or gate.manifest_sha256 != manifest.digest():
        return None
    key, judged = _key(candidate), _judged(candidate)
    return next(
        (
            result_from_json(each.result)
            for each in gate.judgements
            if (each.key, each.judged) == (key, judged)
        ),
        None,
    )


def judge_all(
    candidates: Mapping[str, Candidate], gate: Gate, report: Report
) -> tuple[dict[str, GateResult], dict[str, str]]:
    """Results of all that could be judged, and why the others could not.

    The engine runs only for those without a stored pass. One process judges all. If a variant
    ends it, the rest are judged one by one, so that one bad variant costs nobody else.
    """
    results: dict[str, GateResult] = {}
    faults: dict[str, str] = {}
    waiting: dict[str, Candidate] = {}
    for name, candidate in candidates.items():
        stored = stored_result(candidate)
        if stored is not None and stored.passed:
            results[name] = stored
            report(name, "cached")
        else:
            waiting[name] = candidate
            report(name, "checking")

    def judged(name: str, result: GateResult) -> None:
        keep_result(candidates[name], result)
        results[name] = result
        report(name, "built" if result.passed else "failed")

    batches = [waiting] if waiting else []
    for batch in batches:
        try:
            gate(batch, judged)
        except BuildError as error:
            if len(batch) > 1:
                batches += [{name: batch[name]} for name in batch if name not in results]
                continue
            (name,) = batch
            faults[name] = str(error)
            report(name, "failed")
    return {name: results[name] for name in candidates if name in results}, faults


def keep_result(candidate: Candidate, result: GateResult) -> None:
    """Write gate.json and the model card; a twin gets the same verdict for its own files.

    Verdicts on the same files from other kinds of machines, engines and dtypes stay beside it.
    """
    new = Judgement(
        passed=result.passed,
        result=result_to_json(result),
        key=_key(candidate),
        judged=_judged(candidate),
    )
    for folder in {candidate.folder, candidate.served}:
        manifest = read_manifest(folder)
        if manifest is None:
            raise BuildError(f"{folder} has no manifest.json: make it again")
        known, digest = read_gate(folder), manifest.digest()
        if known is None or known.manifest_sha256 != digest:
            known = GateFile(digest, ())
        text = msgspec.json.format(msgspec.json.encode(known.with_judgement(new))).decode()
        write_whole(folder / GATE_JSON, text + "\n")
        write_card(folder)


def _judged(candidate: Candidate) -> str:
    return "twin" if candidate.twin else "itself"


def _key(candidate: Candidate) -> dict[str, object]:
    recipe = candidate.recipe
    here = setting_here(candidate.kind, recipe.engine.dtype)
    return {
        "limits": recipe.gate.model_dump(exclude={"reason"}),
        "dtype": recipe.engine.dtype,
        "engine": here.version,
        "machine": here.machine,
    }
