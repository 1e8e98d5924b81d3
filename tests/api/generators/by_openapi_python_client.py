"""Posts events, one with all optional fields, lists an inbox and reads an error by one of openapi-python-client."""

import json
import sys
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from made import AuthenticatedClient, models
from made.api.directory import get_user
from made.api.events import get_event, post_event
from made.api.notifications import list_notifications

given = json.load(sys.stdin)
service = AuthenticatedClient(given["url"], token=given["service"])
user = AuthenticatedClient(given["url"], token=given["user"])


def post(event: Any) -> Any:
    return post_event.sync_detailed(client=service, body=event).parsed


posted = [
    str(post(getattr(models, name).from_dict(event)).id)
    for name, event in zip(given["names"], given["events"], strict=True)
]
own = models.NoteEvent(
    type_="note",
    notify=models.Notify(users=[1], except_=[3], unknown="skip"),
    data=models.NoteData.from_dict(given["note"]["data"]),
    params=models.NoteParams.from_dict(given["note"]["params"]),
    id=UUID(given["id"]),
    key="generated",
    deliver_at=datetime(2020, 1, 1, tzinfo=UTC),
    about=["order:42"],
)
posted.append(str(post(own).id))
get_event.sync(UUID(posted[-1]), client=service, wait=10)
page = list_notifications.sync(client=user, per_page=100)
refused = [
    each.field
    for each in post(
        models.NoteEvent(type_="note", notify=models.Notify(users=[99]), data=own.data, params=own.params)
    ).errors
]
assert get_user.sync(1, client=service).first_name, "an answer that the client does not know"
json.dump({"posted": posted, "listed": [str(each.id) for each in page.data], "refused": refused}, sys.stdout)
