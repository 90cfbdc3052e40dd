"""Make the reference of the database's tables from the schema and columns.toml."""

import ast
import inspect
import re
import tomllib
from itertools import pairwise
from pathlib import Path

from sqlalchemy import Column, Index, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from checks.public_surface import places
from checks.reference_pages.marks import table

_REFERENCE = re.compile(r" ?\((?:docs/adr/\d+|`[a-z_.]+`)\)|: see `[a-z_.]+`")
"""A reference to the code or to an ADR, which operators do not need."""
COLUMNS: dict[str, dict[str, str]] = tomllib.loads(
    Path(__file__).with_name("columns.toml").read_text(encoding="utf-8")
)
"""Table to column to what the column holds."""
_SOURCES = sorted(Path(inspect.getfile(places.schema)).parent.glob("*.py"))


def render() -> str:
    """Return a section for each table."""
    tables = {each.name: each for each in places.schema.metadata.tables.values()}
    return "\n".join(_section(tables[name]) for name in COLUMNS)


def type_name(column: Column[object]) -> str:
    """Return the type of a column on PostgreSQL."""
    return column.type.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]


def _section(of: Table) -> str:
    rows = [
        (
            f"`{column.name}`",
            type_name(column).lower(),
            "yes" if column.nullable else "",
            COLUMNS[of.name][column.name],
        )
        for column in of.columns
    ]
    keys = ", ".join(f"`{column.name}`" for column in of.primary_key)
    text = f"### {of.name}\n\n{_purpose(of.name)}\n\n"
    text += table(("column", "type", "NULL", "what it holds"), rows)
    text += f"\nPrimary key: {keys}."
    if of.name == "validation_history":
        text += " On PostgreSQL there is none, and the table is partitioned by day."
    if indexes := _indexes(of):
        text += f" Indexes: {'; '.join(indexes)}."
    return text + "\n"


def _indexes(of: Table) -> list[str]:
    unique = [f"`{column.name}` (unique)" for column in of.columns if column.unique]
    return unique + [_index(each) for each in sorted(of.indexes, key=lambda it: str(it.name))]


def _index(index: Index) -> str:
    statement = str(CreateIndex(index).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    kind = " (unique)" if index.unique else ""
    kind += " (BRIN)" if "USING brin" in statement else ""
    _, _, condition = statement.partition(" WHERE ")
    columns = ", ".join(f"`{column.name}`" for column in index.columns)
    return f"{columns}{kind}" + (f" where `{condition}`" if condition else "")


def _purpose(name: str) -> str:
    """Return the first paragraph of the string below a table's definition in storage/schema/."""
    body = [node for file in _SOURCES for node in ast.parse(file.read_text("utf-8")).body]
    for node, below in pairwise(body):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == name
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            first = inspect.cleandoc(str(below.value.value)).split("\n\n")[0]
            return _REFERENCE.sub("", " ".join(first.split()))
    raise KeyError(name)
