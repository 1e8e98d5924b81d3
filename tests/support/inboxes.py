"""An inbox as its clients see it: its list, its changes, and strategies for operations on it."""

from typing import Any

from hypothesis import strategies as st

from tests.support.service import Api

Step = tuple[str, dict[str, Any]]

MARKS = {"read": ("PUT", "/read"), "unread": ("PUT", "/unread"), "deleted": ("DELETE", "")}

whiches = st.integers(0, 8)


def step(name: str, **given_: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(name), st.fixed_dictionaries(given_))


def own_id(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


class Follower:
    """Follows an inbox by its changes alone, starting empty."""

    def __init__(self, api: Api, user: int, cursor: str) -> None:
        self.api, self.user, self.cursor = api, user, cursor
        self.read: dict[str, bool] = {}

    @classmethod
    async def of(cls, api: Api, user: int) -> "Follower":
        answer = await api.as_user(user, "GET", "/notifications/changes")
        return cls(api, user, answer.json()["cursor"])

    async def follow(self) -> int:
        """Catch up, and return how many are unread."""
        more = True
        while more:
            answer = await self.api.as_user(self.user, "GET", f"/notifications/changes?since={self.cursor}")
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert "resync" not in found
            for change in found["data"]:
                self.apply(change["event"], change["data"])
            self.cursor, more = found["cursor"], found["more"]
        unread: int = found["unread"]
        return unread

    def apply(self, event: str, data: dict[str, Any]) -> None:
        if event == "notification":
            self.read[data["id"]] = data["read"]
        elif event == "deleted":
            self.read.pop(data["id"], None)
        else:
            for id_ in self.meant(data):
                if id_ in self.read:
                    self.read[id_] = event == "read"

    def meant(self, data: dict[str, Any]) -> list[str]:
        if "all" not in data:
            return data.get("ids") or [data["id"]]
        known = list(self.read)
        return known[: known.index(data["up_to"]) + 1] if data["up_to"] else []

    def listed(self) -> list[tuple[str, bool]]:
        return list(reversed(self.read.items()))


async def listed(api: Api, user: int) -> list[tuple[str, bool]]:
    """Return the ids of an inbox, newest first, and whether they are read; all counts are right."""
    page, unread = await api.inbox(user, "?per_page=100"), await api.inbox(user, "?per_page=100&show=unread")
    found = [(entry["id"], entry["read"]) for entry in page["data"]]
    assert all(entry["read"] == (entry["read_at"] is not None) for entry in page["data"])
    assert [(entry["id"], entry["read"]) for entry in unread["data"]] == [each for each in found if not each[1]]
    assert counts(page) == (len(found), len(unread["data"]))
    assert counts(unread) == (len(unread["data"]), len(unread["data"]))
    return found


def counts(page: dict[str, Any]) -> tuple[int, int]:
    return page["pagination"]["total"], page["pagination"]["unread"]


async def read_times(api: Api, user: int) -> dict[str, Any]:
    """Return when each was read, to the microsecond, which no response contains."""
    rows = await api.app_state.database.rows(
        "select event_id, read_at from inbox where user_id = $1 and read_at is not null and deleted_at is null", user
    )
    return {str(row["event_id"]): row["read_at"] for row in rows}
