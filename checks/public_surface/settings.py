"""Collect the settings: names, environment variables, types, defaults and bounds."""

from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from checks.public_surface import places
from checks.public_surface.json_schema import inline, without_prose


def collect_settings() -> dict[str, Any]:
    """Return each setting, the settings file, and the defaults that each profile replaces."""
    return {
        "settings": _describe_fields(places.Settings),
        "secrets of a rotation": _describe_fields(places.NewSecret),
        "file": {
            "default": str(places.DEFAULT_CONFIG_FILE),
            "environment": places.CONFIG_FILE_VARIABLE,
        },
        "defaults of --prototype": to_jsonable_python(dict(places.PROTOTYPE)),
        "defaults of --sandbox": to_jsonable_python(dict(places.SANDBOX)),
        "rates beyond this machine": {
            kind.value: rate for kind, rate in places.DEFAULT_RATES.items()
        },
    }


def _describe_fields(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    types = schema.get("$defs", {})
    return {
        name: {
            "environment": places.environment_variable(name),
            "default": to_jsonable_python(field.get_default(call_default_factory=True)),
            "required": field.is_required(),
            "type": _without_default(inline(without_prose(schema["properties"][name]), types)),
        }
        for name, field in model.model_fields.items()
    }


def _without_default(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in schema.items() if name != "default"}
