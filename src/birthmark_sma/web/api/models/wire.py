"""The forms that all JSON models of the API share. Requests are strict."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from birthmark_sma.pki.keys.key_policy import MAX_PEM_CHARACTERS
from birthmark_sma.protocol.key_table import MAX_WIRE_INTEGER

WireInteger = Annotated[int, Field(ge=0, le=MAX_WIRE_INTEGER)]
Pem = Annotated[str, Field(min_length=1, max_length=MAX_PEM_CHARACTERS)]


def _hex(digits: int) -> object:
    return Field(pattern=f"^[0-9a-fA-F]{{{digits}}}$", min_length=digits, max_length=digits)


Hex24 = Annotated[str, _hex(24)]
Hex32 = Annotated[str, _hex(32)]
Hex64 = Annotated[str, _hex(64)]
Hex96 = Annotated[str, _hex(96)]
Hex160 = Annotated[str, _hex(160)]


class WireRequest(BaseModel):
    # Without `hide_input_in_errors`, pydantic's messages would contain secrets such as NUC hashes.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class WireResponse(BaseModel):
    model_config = ConfigDict(frozen=True)
