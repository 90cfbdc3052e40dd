"""Make the API reference from the OpenAPI document."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from birthmark_sma.authority.access.store import KeyScope
from checks.reference_pages.marks import table
from checks.reference_pages.problems import REMEDIES

Object = dict[str, Any]

_TAGS = {
    "provision": "Provisioning",
    "validate": "Validation",
    "operate": "Certificates, health and figures",
}
_ADMINISTRATION = "administer"
_ADMINISTRATION_PAGE = "operate/administration-api.md"
"""This page shows how to use the administration API; openapi.json has its fields."""
COMMON = ("401", "403", "408", "414", "421", "429", "431", "500", "501", "505")
_VECTORS = Path(__file__).parents[2] / "vectors" / "provisioning_response_test.json"
_MAKE_REQUEST = """\
openssl ecparam -name prime256v1 -genkey -noout -out camera.key
openssl req -new -key camera.key -subj "/CN=camera-0001" -out camera.csr
printf '{{"device_serial": "camera-0001", "device_family": "Android", "csr": "%s"}}' \\
  "$(awk '{{printf "%s\\\\n", $0}}' camera.csr)" > {file}
"""
_URL = "http://127.0.0.1:8000"
_MAKE_OCSP_REQUEST = """\
openssl ocsp -issuer intermediate.crt -serial 0x5a1e0000000000000001 -no_nonce -reqout request.ocsp
"""
_SHOW_OCSP_RESPONSE = """\
openssl ocsp -respin response.ocsp -resp_text -noverify | grep 'Cert Status'
"""
# Programs that verify certificates ask by themselves. These two have no JSON to show.
_BY_PROGRAM = {
    "/pki/ocsp/": f"""\
{_MAKE_OCSP_REQUEST}\
curl -s {_URL}/pki/ocsp/ -H 'Content-Type: application/ocsp-request' \\
  --data-binary @request.ocsp -o response.ocsp
{_SHOW_OCSP_RESPONSE}""",
    "/pki/ocsp/{request}": f"""\
{_MAKE_OCSP_REQUEST}\
curl -s {_URL}/pki/ocsp/"$(base64 -w 0 request.ocsp | sed 's:/:%2F:g; s:+:%2B:g; s:=:%3D:g')" \\
  -o response.ocsp
{_SHOW_OCSP_RESPONSE}""",
}
# Requests that no shell can make: each needs a certificate of this authority.
_OF_DEVICES = {
    "/api/v1/devices/renew": "a device signs it with the key of its certificate",
    "/api/v1/devices/renewal-info/{certificate_id}": "the id is that of a device's certificate",
}


def render(document: Object) -> str:
    """Return the sections of all operations, grouped as in the document."""
    text = ""
    for tag, title in _TAGS.items():
        text += f"## {title}\n\n"
        for path, method, operation in _operations(document, tag):
            text += _operation(document, path, method, operation)
    return text


def render_index(document: Object) -> str:
    """Return a table of all operations."""
    rows = [
        (f"[`{method.upper()} {path}`]({place})", operation["summary"], _scope(operation))
        for tag in (*_TAGS, _ADMINISTRATION)
        for path, method, operation in _operations(document, tag)
        for place in (f"#{_anchor(method, path)}" if tag in _TAGS else _ADMINISTRATION_PAGE,)
    ]
    return table(("request", "what it does", "access key of scope"), rows)


def render_problems() -> str:
    """Return the table of problem types."""
    rows = [
        (f"`{slug}`", status, cause, remedy) for slug, (status, cause, remedy) in REMEDIES.items()
    ]
    return table(("type, after `urn:birthmark:problem:`", "status", "cause", "what to do"), rows)


def _operations(document: Object, tag: str) -> Iterator[tuple[str, str, Object]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if operation["tags"] == [tag]:
                yield path, method, operation


def _anchor(method: str, path: str) -> str:
    return re.sub(r"[/.{}]", "", f"{method}-{path}").lower()


def _scope(operation: Object) -> str:
    if not operation.get("security"):
        return "none needed"
    least, *others = operation["security"][0]["accessKey"]
    if least == KeyScope.PROVISION and others:
        return "any"
    return f"`{least}` or higher" if others else f"`{least}`"


def _operation(document: Object, path: str, method: str, operation: Object) -> str:
    text = f"### {method.upper()} {path}\n\n{operation['summary']}. {_prose(operation)}\n\n"
    text += f"Access key: {_scope(operation)}.\n\n"
    if parameters := operation.get("parameters"):
        rows = [
            (f"`{each['name']}` ({each['in']})", _type(each["schema"]), each["description"])
            for each in parameters
        ]
        text += table(("parameter", "value", "what it is"), rows) + "\n"
    if path in _BY_PROGRAM:
        text += f"```sh\n{_BY_PROGRAM[path]}```\n\n"
    elif "requestBody" in operation:
        text += _request(document, path, operation["requestBody"])
    elif method == "get" and "200" in operation["responses"]:
        text += _get(path, operation)
    text += _success(document, operation["responses"], is_run=path not in _OF_DEVICES)
    return text + _statuses(operation["responses"])


def _prose(operation: Object) -> str:
    return " ".join((operation.get("description") or "").split())


def _request(document: Object, path: str, body: Object) -> str:
    model = _resolve(document, body["content"]["application/json"]["schema"])
    text = table(("field", "value", "needed", "what it is"), _fields(document, model))
    file = f"{path.strip('/').replace('/', '-')}.json"
    examples = model.get("examples") or [_example_of(document, model)]
    headers = "-H 'Content-Type: application/json'"
    if path.endswith("/provision"):
        # A key in an example would be a published key, which the authority refuses.
        text += f"\nRequest:\n\n{_json(examples[0])}\nWith a key of your own, as the file "
        text += f"`{file}`:\n\n```sh\n{_MAKE_REQUEST.format(file=file)}```\n\n"
        headers += ' -H "Idempotency-Key: $(openssl rand -hex 16)"'
    elif path in _OF_DEVICES:
        text += f"\nRequest, as the file `{file}`:\n\n{_json(examples[0])}\n"
    else:
        text += f"\nRequest, as the file `{file}`:\n\n<!-- file: {file} -->\n"
        text += f"{_json(examples[0])}\n"
    return (
        text + _not_run(path) + f"```sh\ncurl -s {_URL}{path} {headers} \\\n  -d @{file}\n```\n\n"
    )


def _get(path: str, operation: Object) -> str:
    media_type, *_ = operation["responses"]["200"]["content"]
    comment = _not_run(path)
    if "{" in path:
        path = path.format(**{each["name"]: each["example"] for each in operation["parameters"]})
    is_text = media_type in {"application/json", "text/plain"}
    output = "" if is_text else f" -o {path.rpartition('/')[2]}"
    return f"{comment}```sh\ncurl -s {_URL}{path}{output}\n```\n\n"


def _not_run(path: str) -> str:
    """Return the comment that keeps tests/docs from running a command, if it cannot be run."""
    return f"<!-- not run: {_OF_DEVICES[path]} -->\n" if path in _OF_DEVICES else ""


def _success(document: Object, responses: Object, *, is_run: bool) -> str:
    content = responses.get("200", {}).get("content", {}).get("application/json")
    if content is None:
        return ""
    text = ""
    for name, example in content.get("examples", {}).items():
        text += f"Response{', ' + name if name else ''}:\n\n"
        text += "<!-- response -->\n" if is_run else ""
        text += _json(_complete(example["value"])) + "\n"
    fields = _fields(document, _resolve(document, content["schema"]))
    return text + table(("field", "value", "always", "what it is"), fields) + "\n"


def _complete(example: Any) -> Any:
    """Return an example of a provisioned device with whole certificates, those of the vectors."""
    if "device_certificate" not in example:
        return example
    vectors = json.loads(_VECTORS.read_text(encoding="utf-8"))
    [response, *_] = [test["response"] for test in vectors["testGroups"][0]["tests"]]
    return {name: response.get(name, value) for name, value in example.items()}


def _statuses(responses: Object) -> str:
    """Return a table of the statuses that are not common to all requests."""
    rows = []
    for status, response in sorted(responses.items()):
        if status in COMMON:
            continue
        types = ""
        for content in response.get("content", {}).values():
            if "Problem" in content.get("schema", {}).get("$ref", ""):
                types = f"`{content['example']['type'].rpartition(':')[2]}`"
        rows.append((status, types, response["description"]))
    return (
        table(("status", "problem type, for example", "when"), rows)
        + "\nAlso the [statuses that every request can get](#statuses-that-every-request-can-get)."
        "\n\n"
    )


def render_common(document: Object) -> str:
    """Return a table of the statuses that every request can get."""
    responses = document["paths"]["/stats"]["get"]["responses"]
    rows = [(status, responses[status]["description"]) for status in COMMON]
    return table(("status", "when"), rows)


def _json(value: object) -> str:
    return f"```json\n{json.dumps(value, indent=2)}\n```\n"


def _resolve(document: Object, schema: Object) -> Object:
    if "$ref" not in schema:
        return schema
    found: Object = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def _fields(document: Object, model: Object, prefix: str = "") -> list[tuple[str, ...]]:
    """Return a row for each field of a model, with the fields of objects inside it."""
    needed = model.get("required", [])
    rows: list[tuple[str, ...]] = []
    for name, schema in model.get("properties", {}).items():
        inner = _resolve(document, schema.get("items", schema) if "items" in schema else schema)
        told = schema.get("description", "") or inner.get("description", "")
        is_needed = "yes" if name in needed else "no"
        rows.append((f"`{prefix}{name}`", _type(schema, document), is_needed, told))
        if "properties" in inner:
            dots = f"{prefix}{name}[]." if "items" in schema else f"{prefix}{name}."
            rows += _fields(document, inner, dots)
    return rows


def _type(schema: Object, document: Object | None = None) -> str:
    """Return the type and the limits of a value in words."""
    if "anyOf" in schema:
        kinds = [_type(each, document) for each in schema["anyOf"]]
        return " or ".join(kinds)
    if "$ref" in schema:
        found = _resolve(document, schema) if document else {}
        return _type(found, document) if "enum" in found else "object"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    return str(schema.get("type", "any")) + _limits(schema)


def _limits(schema: Object) -> str:
    if "maximum" in schema:
        return f", {schema.get('minimum', 0):,} to {schema['maximum']:,}"
    if "maxLength" in schema:
        least, most = schema.get("minLength", 0), schema["maxLength"]
        return f", {most:,} characters" if least == most else f", {least} to {most:,} characters"
    if "maxItems" in schema:
        least, most = schema.get("minItems", 0), schema["maxItems"]
        return f" of {most:,}" if least == most else f" of {least} to {most:,}"
    return ""


def _example_of(document: Object, model: Object) -> Object:
    """Return an example of a model that has none, from its fields' examples."""
    [(name, schema)] = model["properties"].items()
    item = _resolve(document, schema["items"])
    return {name: [item["examples"][0]]}
