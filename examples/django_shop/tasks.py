"""Django's own tasks, which become runs. From Django 6.0 on: from django.tasks import task."""

from typing import Any

from django_tasks import task

from django_shop.models import Order


@task(queue_name="mail", priority=5)
def confirm_by_mail(number: int, *, greeting: str = "Hello") -> dict[str, Any]:
    if number < 0:
        message = "there is no such order:\nnumbers begin with 0"
        raise ValueError(message)
    return {"confirmed": Order.objects.filter(number=number).update(is_confirmed=True), "said": greeting}


@task(takes_context=True)
async def count_attempts(context: Any) -> int:
    return context.attempt
