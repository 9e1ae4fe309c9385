"""The router's OpenAPI document against the code that it describes."""

import ast
import inspect
from pathlib import Path

import jsonschema
import msgspec
import pytest

from serve_app.domain import errors
from serve_app.domain.traffic import RouteReason
from serve_app.serving import openapi, router_app
from serve_app.serving.openapi import ERRORS, RELAYED, openapi_document
from serve_app.serving.request_head import RequestHead

SERVING = Path(router_app.__file__).parent
NOT_THE_ROUTERS = {
    # a variant's replica, and what starts Serve
    *("haproxy", "hangup", "local_serve", "placement", "start", "variant_front", "variant_server"),
}
NEVER_ANSWERED = {"ConfigError", "QuantileError", "CallerError", "CheckpointError", "PlanError"}
"""Raised while the router is configured, or roots of the tree that nothing raises."""


@pytest.fixture(scope="module")
def document():
    return openapi_document()


def operations(document):
    return {
        (path, method): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def resolved(document, schema):
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def test_it_relays_what_the_router_relays():
    assert set(RELAYED) == router_app.RELAYED_PATHS


def raised_by_the_router() -> set[str]:
    """Names of our error tree that the modules on a request's way through the router import."""
    names = set()
    routing = SERVING.with_name("routing")
    for file in [*SERVING.glob("*.py"), *routing.glob("*.py")]:
        if file.stem in NOT_THE_ROUTERS:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == errors.__name__:
                names |= {alias.name for alias in node.names}
    return names - NEVER_ANSWERED


def test_every_error_that_the_router_can_answer_is_documented():
    raised = {name: getattr(errors, name) for name in raised_by_the_router()}
    assert {"UnknownModelError", "VariantUnavailableError", "ServerError"} <= raised.keys()
    undocumented = {
        name: error.http_status for name, error in raised.items() if error.http_status not in ERRORS
    }
    assert not undocumented


def test_no_error_is_documented_that_nothing_can_answer():
    statuses = {
        each.http_status
        for _, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, errors.QuantileError)
    }
    assert set(ERRORS) <= statuses


def test_each_answer_has_its_marks_and_each_refusal_the_shape_of_an_error(document):
    reasons = document["components"]["headers"]["RouteReason"]["schema"]["enum"]
    assert set(reasons) == set(RouteReason)
    for where, operation in operations(document).items():
        for status, answer in operation["responses"].items():
            assert {"x-variant", "x-route-reason"} <= answer["headers"].keys(), where
            if status != "200":
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Error"}, where
            asks_to_retry = status in map(str, openapi.WITH_RETRY_AFTER)
            assert ("Retry-After" in answer["headers"]) is asks_to_retry, where


def test_the_error_that_we_send_is_the_error_that_we_promise(document):
    schema = document["components"]["schemas"]["Error"]
    body = {"message": "m", "type": "server_error", "param": None, "code": "c"}
    jsonschema.validate({"error": body}, schema)
    for missing in body:
        rest = {name: value for name, value in body.items() if name != missing}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"error": rest}, schema)


def test_what_the_router_reads_of_a_body_is_documented(document):
    read = {field.name: field.required for field in msgspec.structs.fields(RequestHead)}
    documented = set()
    for path in RELAYED:
        body = operations(document)[path, "post"]["requestBody"]
        schema = body["content"]["application/json"]["schema"]
        assert set(schema["required"]) == {name for name, required in read.items() if required}
        assert {"model", "user"} <= schema["properties"].keys()
        documented |= schema["properties"].keys()
    assert read.keys() <= documented


def test_every_reference_leads_somewhere(document):
    def walk(node):
        if isinstance(node, dict):
            resolved(document, node)
            for inner in node.values():
                walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(document)
