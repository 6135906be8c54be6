"""
A Django project that inserts runs in its own transactions, and installs notifyworker's schema by a migration.

    python -m django migrate --settings django_shop.settings
    notifyworker worker django_shop.worker:worker
"""
