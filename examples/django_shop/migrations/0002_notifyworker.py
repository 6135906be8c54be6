"""Installs the schema. For a later version: another migration, with statements("notifyworker", above=.., to=..)."""

from django.db import migrations

from notifyworker.migrate import newest, statements


class Migration(migrations.Migration):
    dependencies = [("django_shop", "0001_initial")]
    operations = [
        # Write the number here: `notifyworker schema` tells it in its first line.
        migrations.RunSQL(statements("notifyworker", to=newest()), reverse_sql="DROP SCHEMA notifyworker CASCADE"),
    ]
