"""`sma tables`: create missing key tables, show how many there are, and rotate them.

`populate` never overwrites an existing key table, because devices hold keys of it. The commands
about epochs are in `commands/table_epochs.py`.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.commands import table_epochs
from birthmark_sma.cli.opening import existing_database
from birthmark_sma.cli.options import Json, command
from birthmark_sma.cli.output import print_fields, print_json, print_line, progress_bar
from birthmark_sma.counts import counted
from birthmark_sma.errors import NotInitialisedError

if TYPE_CHECKING:
    from birthmark_sma.config import Settings

app = typer.Typer(no_args_is_help=True, help="Create, show and rotate the key tables.")

command(app, "tables rotate")(table_epochs.rotate)
command(app, "tables list", remote=True)(table_epochs.list_)
command(app, "tables stragglers")(table_epochs.stragglers)
command(app, "tables end")(table_epochs.end)
command(app, "tables exposure")(table_epochs.exposure)


@command(app, "tables populate")
def populate(settings: "Settings", as_json: Json = False) -> None:
    """Create the key tables that are missing.

    You can interrupt the command and run it again. It never overwrites a table, because every
    device has the keys of three tables.
    """
    from birthmark_sma.authority.initialisation import populate_tables

    with existing_database(settings) as database, progress_bar("Creating key tables") as progress:
        created = populate_tables(database, settings, progress, find_actor())
    if as_json:
        print_json({"created": created})
    elif created:
        print_line(f"{counted(created, 'key table was', 'key tables were')} created.")
    else:
        print_line("All key tables exist. Nothing was changed.")


@command(app, "tables show")
def show(settings: "Settings", as_json: Json = False) -> None:
    """Show the number of key tables and keys, and the key-encryption key that wraps them."""
    from birthmark_sma.authority.kek import store as kek_store
    from birthmark_sma.authority.key_tables import store as key_table_store

    with existing_database(settings) as database, database.read() as connection:
        sizes = key_table_store.find_sizes(connection)
        keks = kek_store.list_keks(connection)
        present = key_table_store.count_tables(connection)
    if sizes is None or not keks:
        raise NotInitialisedError
    if as_json:
        print_json(asdict(sizes) | {"present": present, "wrapped_under": keks[-1].source})
        return
    print_fields(
        [
            ("tables", f"{present:,} of {sizes.tables:,}"),
            ("keys a table", f"{sizes.keys_per_table:,}"),
            ("wrapped under", f"AES-256 key {keks[-1].kek_id}, from the {keks[-1].source}"),
        ]
    )
    if present < sizes.tables:
        print_line("\nTables are missing. Type: sma tables populate")
