"""A site with django-notifications-hq, as its documentation sets it up, which gunicorn serves in its own environment.

It answers with what the package has: its views for the list and for marks, and `notify.send` behind a view, since it
has none for posting. `X-User` names the caller, which costs a query fewer than a session of Django.
"""

import json
import os
from collections.abc import Callable

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="x" * 50,
    ALLOWED_HOSTS=["127.0.0.1"],
    USE_TZ=True,
    ROOT_URLCONF=__name__,
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "notifications"],
    MIDDLEWARE=[f"{__name__}.called_by"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ["PEERS_HOST"],
            "PORT": os.environ["PEERS_PORT"],
            "USER": os.environ["PEERS_USER"],
            "NAME": os.environ["PEERS_DATABASE"],
            "CONN_MAX_AGE": None,
        }
    },
)
django.setup()

from django.contrib.auth.models import Group, User  # noqa: E402 - models need the settings
from django.contrib.contenttypes.models import ContentType  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import include, path  # noqa: E402
from notifications.signals import notify  # noqa: E402

Handler = Callable[[HttpRequest], HttpResponse]


def called_by(get_response: Handler) -> Handler:
    """Return a middleware that loads the caller, and says how long an answer is, as Django's own does."""

    def handle(request: HttpRequest) -> HttpResponse:
        request.user = User.objects.get(pk=int(request.headers["X-User"]))
        response = get_response(request)
        response["Content-Length"] = len(response.content)
        return response

    return handle


def post(request: HttpRequest) -> HttpResponse:
    """Notify a user, or all members of a group in one transaction."""
    given = json.loads(request.body)
    to = Group.objects.get(pk=given["group"]) if "group" in given else User.objects.get(pk=given["user"])
    with transaction.atomic():
        notify.send(request.user, recipient=to, verb=given["title"], description=given["body"])
    return HttpResponse()


def fill(owners: range, members: range, size: int, title: str, body: str) -> None:
    """Create the tables, the users with their inboxes, and the group of those without one."""
    call_command("migrate", verbosity=0)
    User.objects.bulk_create(User(id=id_, username=f"user{id_}") for id_ in (*owners, *members))
    group = Group.objects.create(pk=1, name="Everyone")
    group.user_set.add(*members)
    kind = ContentType.objects.get_for_model(User).pk
    with connection.cursor() as cursor:
        cursor.execute(
            """
            insert into notifications_notification
                (id, level, unread, actor_content_type_id, actor_object_id, verb, description, public, timestamp,
                 deleted, emailed, recipient_id)
            select row_number() over (order by number, owner), 'info', true, %(kind)s, %(first)s::text, %(title)s,
                   %(body)s, true, now() - make_interval(mins => %(size)s - number), false, false, owner
            from generate_series(1, %(size)s) as number, generate_series(%(first)s, %(last)s) as owner
            order by number, owner
            """,
            {"first": owners[0], "last": owners[-1], "kind": kind, "size": size, "title": title, "body": body},
        )
        cursor.execute(
            "select setval(pg_get_serial_sequence('notifications_notification', 'id'), %s)", [len(owners) * size]
        )
        cursor.execute("vacuum analyze")


urlpatterns = [path("post/", post), path("inbox/", include("notifications.urls", namespace="notifications"))]
application = get_wsgi_application()
