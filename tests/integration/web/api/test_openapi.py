"""The OpenAPI document: valid, complete, with examples that hold, and true of the live server."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from pydantic import BaseModel
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from birthmark_sma.web.api import provision, validate, validate_published
from birthmark_sma.web.api.health import HealthResponse, StatsResponse
from birthmark_sma.web.api.models.provisioning import ProvisionRequest, ProvisionResponse
from birthmark_sma.web.api.models.published import (
    LegacyValidateRequest,
    PublishedValidateRequest,
    PublishedValidateResponse,
)
from birthmark_sma.web.api.models.validation import ValidateNucRequest, ValidateNucResponse
from birthmark_sma.web.problems import InvalidRequestProblem, ProblemDocument, UnknownAddressProblem
from tests.support.cameras.camera import PROVISION, VALIDATE, Camera
from tests.support.programs.running import Running, new_serial

EXAMPLES_PER_OPERATION = 50
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OPERATIONS = {
    ("POST", PROVISION),
    ("POST", VALIDATE),
    ("POST", validate_published.PUBLISHED_PATH),
    ("POST", validate_published.LEGACY_PATH),
    ("POST", "/validate-cert"),
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/stats"),
    ("GET", "/pki/root.crt"),
    ("GET", "/pki/intermediate.crt"),
    ("GET", "/pki/intermediate.crl"),
    ("GET", "/pki/root.crl"),
    ("GET", "/pki/ca/{file}"),
    ("GET", "/pki/roots.pem"),
    ("GET", "/pki/roots.pem.p7s"),
}


@pytest.fixture
def document(sqlite_client: httpx2.Client) -> dict[str, Any]:
    """The OpenAPI document."""
    found: dict[str, Any] = sqlite_client.get("/openapi.json").json()
    return found


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from nodes(each)
    elif isinstance(value, list):
        for each in value:
            yield from nodes(each)


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Each operation by method and path."""
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert [str(error) for error in OPENAPI_31_VALIDATOR.iter_errors(document)] == []


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    references = {node["$ref"] for node in nodes(document) if isinstance(node.get("$ref"), str)}
    assert references
    for reference in references:
        assert reference.startswith("#/components/schemas/")
        assert reference.rpartition("/")[2] in document["components"]["schemas"]


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    found = operations(document)
    assert found.keys() >= OPERATIONS
    for operation in found.values():
        assert operation["summary"]
        assert operation["operationId"]
        assert operation["tags"]
    posts = {path: set(found["POST", path]["responses"]) for path in (PROVISION, VALIDATE)}
    anywhere = {"200", "401", "403", "408", "414", "421", "429", "431", "500", "501", "503", "505"}
    assert posts[VALIDATE] == anywhere | {"400", "409", "413", "415", "422"}
    assert posts[PROVISION] == anywhere | {"409", "413", "415", "422"}
    # Every scope may ask, and so may a caller without a key. Only a wrong key is refused.
    assert set(found["GET", "/health"]["responses"]) == anywhere - {"403"}
    assert set(found["GET", "/health/live"]["responses"]) == anywhere - {
        *("401", "403", "429", "503")
    }
    assert PROVISION == provision.PATH
    assert VALIDATE == validate.PATH


PROBLEMS = {
    each.__name__: each for each in (ProblemDocument, UnknownAddressProblem, InvalidRequestProblem)
}


def test_every_problem_has_an_example_of_its_own_status(document: dict[str, Any]) -> None:
    for (_, path), operation in operations(document).items():
        for status, response in operation["responses"].items():
            if status == "304":  # RFC 9110, section 15.4.5: it has no content
                continue
            content = response["content"]
            if "application/problem+json" not in content:
                assert status in {"200", "503"}
                continue
            example = content["application/problem+json"]["example"]
            assert example["status"] == int(status)
            assert example["instance"] == path
            model = content["application/problem+json"]["schema"]["$ref"].rpartition("/")[2]
            PROBLEMS[model].model_validate(example)


RESPONSES: dict[tuple[str, str], type[BaseModel]] = {
    ("POST", PROVISION): ProvisionResponse,
    ("POST", VALIDATE): ValidateNucResponse,
    ("POST", validate_published.PUBLISHED_PATH): PublishedValidateResponse,
    ("POST", validate_published.LEGACY_PATH): PublishedValidateResponse,
    ("GET", "/health"): HealthResponse,
    ("GET", "/stats"): StatsResponse,
}


@pytest.mark.parametrize("operation", RESPONSES)
def test_examples_of_answers_hold(document: dict[str, Any], operation: tuple[str, str]) -> None:
    content = operations(document)[operation]["responses"]["200"]["content"]["application/json"]
    assert content["examples"]
    for named in content["examples"].values():
        RESPONSES[operation].model_validate(named["value"])


def test_examples_of_requests_hold(document: dict[str, Any]) -> None:
    requests: list[type[BaseModel]] = [
        ValidateNucRequest,
        PublishedValidateRequest,
        LegacyValidateRequest,
        ProvisionRequest,
    ]
    for model in requests:
        examples = document["components"]["schemas"][model.__name__]["examples"]
        assert examples
        for example in examples:
            model.model_validate_json(json.dumps(example))


def test_no_example_is_of_use_to_anyone(
    document: dict[str, Any], sqlite_client: httpx2.Client
) -> None:
    """Threat 28: no private key, no key in use, and no token that passes."""
    text = json.dumps(document)
    assert "PRIVATE KEY" not in text
    token = document["components"]["schemas"]["ValidateNucRequest"]["examples"][0]
    answer = sqlite_client.post(VALIDATE, json=token).json()
    assert answer["validation_result"] == "FAIL"
    camera = Camera.provisioned(sqlite_client, new_serial())
    for secret in (camera.nuc_hash, *camera.table_keys.values()):
        assert secret.hex() not in text


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_the_live_server_keeps_to_its_document(
    running_on_sqlite: Running, operation: tuple[str, str], mode: GenerationMode
) -> None:
    """Threat 21: whatever is sent, no 5xx, no undocumented status, type, header or shape."""
    method, path = operation
    if (method == "GET" or path == "/validate-cert") and mode is GenerationMode.NEGATIVE:
        return  # a request of which nothing is read cannot be malformed
    schema = schemathesis.openapi.from_url(running_on_sqlite.server.url + "/openapi.json")
    sent = 0

    @settings(
        max_examples=EXAMPLES_PER_OPERATION if method == "POST" else 3,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def send(case: Case[Any]) -> None:
        nonlocal sent
        sent += 1
        response = case.call(timeout=30)
        case.validate_response(response, checks=CHECKS)

    send()
    assert sent >= 1
