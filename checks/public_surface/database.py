"""Collect the database schema for both dialects, and the migrations. No database is needed."""

import hashlib
import io
import re
import tokenize
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from checks.public_surface import places

_LAYOUT = frozenset({"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENCODING", "ENDMARKER"})


def collect_schema() -> dict[str, Any]:
    """Return the head revision, all revisions, and the tables as SQL for each dialect."""
    dialects = {"postgresql": postgresql.dialect(), "sqlite": sqlite.dialect()}  # type: ignore[no-untyped-call]
    return {
        "head": places.schema.HEAD_REVISION,
        "revisions": _list_revisions(),
        "tables": {
            table.name: {
                name: {
                    "columns_and_constraints": _split(CreateTable(table).compile(dialect=dialect)),
                    "indexes": sorted(
                        " ".join(str(CreateIndex(index).compile(dialect=dialect)).split())
                        for index in table.indexes
                    ),
                }
                for name, dialect in dialects.items()
            }
            for table in places.schema.metadata.sorted_tables
        },
    }


def _split(statement: Any) -> list[str]:
    lines = [" ".join(line.split()).rstrip(",") for line in str(statement).splitlines()]
    return [line.strip() for line in lines if line.strip() not in {"", ")"}]


def _list_revisions() -> dict[str, Any]:
    scripts = ScriptDirectory(str(places.MIGRATIONS))
    return {
        script.revision: {
            "after": script.down_revision,
            "code": _digest_code(Path(script.path).read_text(encoding="utf-8")),
        }
        for script in scripts.walk_revisions()
    }


def _digest_code(source: str) -> str:
    """Return a digest of a migration's code without imports, comments and docstrings.

    A published migration never changes, but a module that it imports may move. White space and
    doubled braces are ignored.
    """
    statements: list[list[str]] = [[]]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type]
        if name == "NEWLINE":
            statements.append([])
        elif name not in _LAYOUT:
            statements[-1].append(token.string)
    kept = [
        "".join(statement)
        for statement in statements
        if statement
        and statement[0] not in {"import", "from"}
        and not (len(statement) == 1 and statement[0].startswith(('"""', 'r"""')))
    ]
    text = re.sub(r"\s+", "", "\n".join(kept)).replace("{{", "{").replace("}}", "}")
    return hashlib.sha256(text.encode()).hexdigest()[:16]
