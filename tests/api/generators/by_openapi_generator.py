"""Posts events, one with all optional fields, lists an inbox and reads an error by a client of openapi-generator."""

import json
import sys
from datetime import UTC, datetime

import openapi_client as made

given = json.load(sys.stdin)
service = made.ApiClient(made.Configuration(host=given["url"], access_token=given["service"]))
user = made.ApiClient(made.Configuration(host=given["url"], access_token=given["user"]))
events = made.EventsApi(service)

posted = [str(events.post_event(made.NewEvent.from_dict(event)).id) for event in given["events"]]
own = made.NoteEvent(
    type="note",
    notify=made.Notify(users=[1], var_except=[3], unknown="skip"),
    data=made.NoteData.from_dict(given["note"]["data"]),
    params=made.NoteParams.from_dict(given["note"]["params"]),
    id=given["id"],
    key="generated",
    deliver_at=datetime(2020, 1, 1, tzinfo=UTC),
    about=["order:42"],
)
posted.append(str(events.post_event(made.NewEvent(own)).id))
events.get_event(posted[-1], wait=10)
page = made.NotificationsApi(user).list_notifications(per_page=100)
try:
    events.post_event(made.NewEvent(own.model_copy(update={"notify": made.Notify(users=[99]), "id": None})))
    refused = []
except made.exceptions.UnprocessableEntityException as error:
    refused = [each.var_field for each in made.Errors.from_json(error.body).errors]
json.dump({"posted": posted, "listed": [str(each.id) for each in page.data], "refused": refused}, sys.stdout)
