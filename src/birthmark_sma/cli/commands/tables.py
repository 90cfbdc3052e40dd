"""`sma tables`: create missing key tables, and show how many there are.

Existing key tables are never overwritten, because devices hold keys of them.
"""

import typer

from birthmark_sma.cli.commands.init import existing_database, require_sqlite_file
from birthmark_sma.cli.options import DatabaseUrl, DataDir, Json, KekCommand, KekFile, settings_from
from birthmark_sma.cli.output import print_fields, print_json, print_line, progress_bar

app = typer.Typer(no_args_is_help=True, help="Populate and inspect the key tables.")


@app.command()
def populate(
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    kek_file: KekFile = None,
    kek_command: KekCommand = None,
    as_json: Json = False,
) -> None:
    """Create the key tables that are missing.

    Safe to run again and to interrupt. It never overwrites a table: every device in the field holds
    keys of three of them.
    """
    from birthmark_sma.authority.authority import opened_database, populate_tables

    settings = settings_from(
        data_dir=data_dir, database_url=database_url, kek_file=kek_file, kek_command=kek_command
    )
    require_sqlite_file(settings)
    with opened_database(settings) as database, progress_bar("Populating key tables") as progress:
        created = populate_tables(database, settings, progress)
    if as_json:
        print_json({"created": created})
    elif created:
        print_line(f"{created} key tables were created.")
    else:
        print_line("All key tables are there; nothing was changed.")


@app.command()
def show(data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: Json = False) -> None:
    """Show how many tables there are, of how many keys, and how they are wrapped."""
    from birthmark_sma.authority.kek import store as kek_store
    from birthmark_sma.authority.key_tables import store as key_table_store
    from birthmark_sma.errors import NotInitialisedError

    with existing_database(data_dir, database_url) as database, database.read() as connection:
        sizes = key_table_store.find_sizes(connection)
        keks = kek_store.list_keks(connection)
        present = key_table_store.count_tables(connection)
    if sizes is None or not keks:
        raise NotInitialisedError
    if as_json:
        print_json(
            {
                "tables": sizes.tables,
                "keys_per_table": sizes.keys_per_table,
                "present": present,
                "wrapped_under": keks[-1].source,
            }
        )
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
