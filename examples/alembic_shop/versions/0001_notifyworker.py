"""Installs notifyworker's schema. For a later version: another revision, with above= and to=."""

from alembic import op

from notifyworker.migrate import newest, statements

revision = "0001"
down_revision = None


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()  # the driver's own: neither % nor : means anything in this SQL
    for statement in statements("notifyworker", to=newest()):  # write the number here
        cursor.execute(statement)


def downgrade() -> None:
    op.execute("DROP SCHEMA notifyworker CASCADE")
