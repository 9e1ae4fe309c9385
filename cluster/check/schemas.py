"""Objects against the schemas of Kubernetes, of the operators' CRDs and of eksctl; all strict.

The CRDs' schemas are no part of the repository: `$QUANTILE_SCHEMAS`, else `../shared/schemas`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

from cluster.check.fault import ManifestError, UncheckedError
from cluster.check.render import ROOT, Manifest

KUBERNETES = "1.34"
"""The version of cluster/eks/cluster.yaml."""

_OPEN = "x-kubernetes-preserve-unknown-fields"


def schema_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the CRDs' schemas are. Raises UncheckedError where they are not."""
    named = environ.get("QUANTILE_SCHEMAS")
    folder = Path(named) if named else ROOT.parent / "shared" / "schemas"
    if not folder.is_dir():
        raise UncheckedError(f"no CRD schemas: {folder} is no folder; set QUANTILE_SCHEMAS")
    return folder


def check_object(manifest: Manifest) -> None:
    """Hold one object against its schema, unknown fields refused. Raises ManifestError."""
    if is_core(manifest):
        check_core(manifest)
    else:
        check_custom(manifest, schema_folder())


def is_core(manifest: Manifest) -> bool:
    """Whether Kubernetes itself defines the kind."""
    group = manifest["apiVersion"].rpartition("/")[0]
    return "." not in group or (
        group.endswith(".k8s.io") and "gateway" not in group and ("karpenter" not in group)
    )


def check_core(manifest: Manifest) -> None:
    """An object of Kubernetes' own. Raises ManifestError."""
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        raise ManifestError(f"{_name(manifest)}: {error}") from error


def check_custom(manifest: Manifest, folder: Path) -> None:
    """An object of a CRD. Raises ManifestError; UncheckedError without a schema for its kind."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    file = folder / f"{group}_{version}_{manifest['kind']}.json"
    if not file.is_file():
        raise UncheckedError(f"no schema for {manifest['apiVersion']} {manifest['kind']}: {file}")
    faults = _faults(_custom(file), manifest)
    if faults:
        raise ManifestError(f"{_name(manifest)}: " + "; ".join(faults))


def check_eksctl(config: Manifest, folder: Path) -> None:
    """eksctl's ClusterConfig. Raises ManifestError."""
    file = folder / "eksctl.io_v1alpha5_ClusterConfig.schema.json"
    if not file.is_file():
        raise UncheckedError(f"no schema of eksctl: {file}")
    validator = jsonschema.Draft7Validator(json.loads(file.read_text()))
    faults = [
        f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(config)
    ]
    if faults:
        raise ManifestError("ClusterConfig: " + "; ".join(faults))


@cache
def _custom(file: Path) -> jsonschema.Draft202012Validator:
    schema = json.loads(file.read_text())["openAPIV3Schema"]
    return jsonschema.Draft202012Validator(closed(schema, top=True))


def _faults(validator: jsonschema.Draft202012Validator, manifest: Manifest) -> list[str]:
    return [
        f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(manifest)
    ]


def closed(schema: dict[str, Any], *, top: bool = False) -> dict[str, Any]:
    """The schema as a server with strict field validation reads it.

    Objects take no unknown field, `x-kubernetes-int-or-string` and `nullable` are spelled out, and
    a field with a default is not required. At the top, `metadata` is Kubernetes' own.
    """
    result = {key: value for key, value in schema.items() if not key.startswith("x-")}
    properties = schema.get("properties")
    if properties is not None:
        result["properties"] = {name: closed(each) for name, each in properties.items()}
        if top:
            result["properties"]["metadata"] = {"type": "object"}
        if not schema.get(_OPEN) and "additionalProperties" not in schema:
            result["additionalProperties"] = False
        defaults = {name for name, each in properties.items() if "default" in each}
        result["required"] = [name for name in schema.get("required", []) if name not in defaults]
    for key in ("items", "additionalProperties", "not"):
        if isinstance(schema.get(key), dict):
            result[key] = closed(schema[key]) if key != "not" else schema[key]
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable") and isinstance(result.get("type"), str):
        result["type"] = [result["type"], "null"]
    return result


def cel_rules(kind_file: Path) -> Iterator[tuple[str, str]]:
    """(path, rule) of every `x-kubernetes-validations` of a CRD: what no schema can check."""

    def walk(node: Any, path: str) -> Iterator[tuple[str, str]]:
        if not isinstance(node, dict):
            return
        for each in node.get("x-kubernetes-validations") or []:
            yield path, each["rule"]
        for name, child in (node.get("properties") or {}).items():
            yield from walk(child, f"{path}.{name}")
        for key in ("items", "additionalProperties"):
            yield from walk(node.get(key), f"{path}[]")

    yield from walk(json.loads(kind_file.read_text())["openAPIV3Schema"], "")


def _name(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata'].get('name') or 'generated'}"
