"""As few settings as there can be. The database is the one that libpq's variables name."""

import os

SECRET_KEY = os.environ.get("SECRET_KEY", "for examples only")
INSTALLED_APPS = ["django_shop", "django_tasks"]  # from Django 6.0 on it has tasks of its own: leave the latter out
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PGDATABASE"],
        "HOST": os.environ.get("PGHOST", ""),
        "PORT": os.environ.get("PGPORT", ""),
        "USER": os.environ.get("PGUSER", ""),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
    }
}
TASKS = {"default": {"BACKEND": "notifyworker.django.NotifyworkerBackend", "QUEUES": ["default", "mail"]}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
