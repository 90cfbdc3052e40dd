"""Make the OpenAPI document without a database, and write it as docs/openapi.json."""

import json
from typing import Any, NoReturn

from fastapi import FastAPI

from checks.public_surface import places


def make_document() -> dict[str, Any]:
    """Return the OpenAPI document that a server has at /openapi.json."""
    made: list[dict[str, Any]] = []

    def take_document(app: FastAPI, *_: object) -> object:
        made.append(app.openapi())
        return app

    def never_opened() -> NoReturn:
        raise NotImplementedError

    places.build_application(never_opened, take_document)
    return made[0]


def render(document: dict[str, Any]) -> str:
    """Return the document as the text of docs/openapi.json."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
