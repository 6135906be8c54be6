"""The worker of the shop: a plain function runs in a thread, where Django's ORM may block."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_shop.settings")
django.setup()

from django.db import close_old_connections  # noqa: E402 - Django must be set up before

from django_shop.models import Order  # noqa: E402
from notifyworker import Retry, Run, Worker  # noqa: E402
from notifyworker.django import register  # noqa: E402

worker = Worker()
register(worker, timeout=60, retry=Retry(max_attempts=2, base_s=0.1))  # what django_shop.tasks enqueues


@worker.handler("order.confirm")
def confirm(run: Run, payload: dict[str, int]) -> dict[str, int]:
    close_old_connections()  # as Django does before a request: none that the server has dropped meanwhile
    try:
        return {"confirmed": Order.objects.filter(number=payload["number"]).update(is_confirmed=True)}
    finally:
        close_old_connections()
