import json
from uuid import UUID

from django.db import connection, transaction

from django_shop.models import Order


def place(number: int) -> UUID:
    """An order and the run that confirms it: both are committed, or neither is."""
    with transaction.atomic():
        Order.objects.create(number=number)
        with connection.cursor() as cursor:
            cursor.execute("SELECT notifyworker.enqueue('order.confirm', %s)", [json.dumps({"number": number})])
            (run_id,) = cursor.fetchone()
    return run_id
