"""Device serials under folding, which are one name to people and to certificates, are unique.

Rows that are one name already keep working: the device that was provisioned first keeps the folded
name, and each later one has its provisioning id behind it. It takes a minute for some millions of
devices, in which none is provisioned.
"""

import sqlalchemy as sa
from alembic import op

from birthmark_sma.pki.names import fold

revision = "0005"
down_revision = "0004"

_BATCH = 5_000
_SEPARATOR = "\t"  # no folded serial has one


def upgrade() -> None:
    op.add_column(
        "registered_devices",
        sa.Column("serial_folded", sa.Text().with_variant(sa.Text(collation="C"), "postgresql")),
    )
    _fold_what_is_there()
    _tell_collisions_apart()
    op.create_index(
        "registered_devices_serial_folded_key", "registered_devices", ["serial_folded"], unique=True
    )
    if op.get_bind().dialect.name == "postgresql":  # what is looked for is looked for folded
        op.drop_index("registered_devices_serial_idx", "registered_devices")


_ON_POSTGRESQL = sa.text(
    "UPDATE registered_devices SET serial_folded = new.folded"
    " FROM unnest(CAST(:serials AS text[]), CAST(:folded AS text[])) AS new (serial, folded)"
    " WHERE device_serial = new.serial"
)
_ON_SQLITE = sa.text(
    "UPDATE registered_devices SET serial_folded = :folded WHERE device_serial = :serial"
)


def _fold_what_is_there() -> None:
    connection = op.get_bind()
    page = sa.text(
        "SELECT device_serial FROM registered_devices WHERE device_serial > :after"
        " ORDER BY device_serial LIMIT :batch"
    )
    after = ""
    while serials := list(connection.execute(page, {"after": after, "batch": _BATCH}).scalars()):
        folded = [fold(serial) for serial in serials]
        if connection.dialect.name == "postgresql":
            connection.execute(_ON_POSTGRESQL, {"serials": serials, "folded": folded})
        else:
            connection.execute(
                _ON_SQLITE,
                [{"serial": s, "folded": f} for s, f in zip(serials, folded, strict=True)],
            )
        after = serials[-1]


def _tell_collisions_apart() -> None:
    op.get_bind().execute(
        sa.text(
            "UPDATE registered_devices"
            " SET serial_folded = serial_folded || :separator || provisioning_id"
            " WHERE device_serial IN (SELECT device_serial FROM ("
            "  SELECT device_serial, row_number() OVER ("
            "   PARTITION BY serial_folded ORDER BY provisioned_at, device_serial) AS place"
            "  FROM registered_devices) AS ranked WHERE place > 1)"
        ),
        {"separator": _SEPARATOR},
    )
