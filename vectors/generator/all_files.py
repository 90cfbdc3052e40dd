"""List all generated files by their path below `vectors/`."""

from pathlib import Path

from vectors.generator import bundles, chains, normative, provisioning, renewals, verdicts
from vectors.generator.document import as_json
from vectors.generator.schemas import SCHEMAS


def all_files(here: Path) -> dict[str, bytes]:
    """Generate all files. `here` is the directory of the normative files, which have the values."""
    documents = {
        "key_derivation": normative.key_derivation(here),
        "camera_token": normative.camera_tokens(here),
        "provisioning_response": provisioning.make(),
        "certificate_chain": chains.make(),
        "bundle_signature": bundles.make(),
        "renewal_proof": renewals.make(),
        "verdict": verdicts.make(),
    }
    files = {f"{name}_test.json": document.to_json() for name, document in documents.items()}
    schemas = {
        f"schemas/{name}_test_schema.json": as_json(schema) for name, schema in SCHEMAS.items()
    }
    return files | schemas
