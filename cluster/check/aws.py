"""Commands of the aws CLI, held against botocore's own models, of which the CLI is made.

Operations, waiters, options and required options; not what only AWS knows (names, values, rights).
"""

from functools import cache

import botocore.session
from botocore import xform_name
from botocore.exceptions import UnknownServiceError
from botocore.model import OperationModel

from cluster.check.fault import ManifestError

GLOBAL = {"--query", "--output", "--region", "--profile", "--no-cli-pager"}
CUSTOM = {
    ("s3", "mb"): set[str](),
    ("s3", "rb"): {"--force"},
    ("s3", "cp"): {"--recursive"},
    ("s3", "ls"): {"--recursive"},
    ("ecr", "get-login-password"): set[str](),
}
"""Commands that the CLI has beyond the models, with the options used here."""
SHORT = {("ec2", "authorize-security-group-ingress"): {"--protocol", "--port", "--source-group"}}
"""Options that the CLI adds to an operation of the models."""


def check_aws(arguments: list[str], command: str) -> None:
    """Raises ManifestError for what the CLI would not take."""
    service, name = [*arguments, "", ""][:2]
    service = "s3" if service == "s3api" else service
    used = {word.split("=")[0] for word in arguments if word.startswith("--")} - GLOBAL
    if (service, name) in CUSTOM:
        if wrong := used - CUSTOM[service, name]:
            raise ManifestError(f"README: {command!r}: aws {service} {name} has no {wrong}")
        return
    waited = arguments[2] if name == "wait" and len(arguments) > 2 else None
    operation = _waited(service, waited) if waited else _operations(service).get(name)
    if operation is None:
        raise ManifestError(f"README: {command!r}: aws {service} has no {waited or name}")
    shape = operation.input_shape
    known = set(SHORT.get((service, name), set()))
    for member, each in shape.members.items() if shape else ():
        option = xform_name(member, "-")
        known |= {f"--{option}", *([f"--no-{option}"] if each.type_name == "boolean" else [])}
    if wrong := sorted(used - known):
        raise ManifestError(f"README: {command!r}: no option {', '.join(wrong)}")
    required = {f"--{xform_name(each, '-')}" for each in (shape.required_members if shape else ())}
    if lacking := sorted(required - used):
        raise ManifestError(f"README: {command!r} lacks {', '.join(lacking)}")


@cache
def _operations(service: str) -> dict[str, OperationModel]:
    try:
        model = botocore.session.get_session().get_service_model(service)
    except UnknownServiceError:
        raise ManifestError(f"README: aws has no service {service!r}") from None
    return {xform_name(each, "-"): model.operation_model(each) for each in model.operation_names}


@cache
def _waited(service: str, waiter: str) -> OperationModel | None:
    """The operation that a waiter asks again and again."""
    _operations(service)  # says which service there is not
    waiters = botocore.session.get_session().get_waiter_model(service)
    for each in waiters.waiter_names:
        if xform_name(each, "-") == waiter:
            asked = waiters.get_waiter(each).operation
            return _operations(service).get(xform_name(asked, "-"))
    return None
