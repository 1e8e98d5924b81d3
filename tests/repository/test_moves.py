"""The migration guides: exports of other systems are imported, and replacement functions post events."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.support.database import url_for
from tests.support.programs import locked_environment, run
from tests.support.service import HOUR, SECRET, Api
from tocsin.auth.minting import mint_service
from tocsin.postgres.supervisor import Embedded

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / f"docs/guides/move-from-{page}.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


Functions = Callable[[str], dict[str, Any]]


async def imported(api: Api, lines: str) -> dict[str, int]:
    answer = await api.as_service(
        "POST", "/directory/import", content=lines, headers={"Content-Type": "application/x-ndjson"}
    )
    assert answer.status_code == 200, answer.text
    counts: dict[str, int] = answer.json()
    return counts


@pytest.fixture
def functions(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Functions]:
    """Runs the code of a guide, for the service under test, and returns what it defines."""
    monkeypatch.setenv("NOTIFY_URL", str(api.http.base_url))
    monkeypatch.setenv("NOTIFY_TOKEN", mint_service(SECRET, "crm", ["events:write"], HOUR))
    with contextlib.ExitStack() as clients:

        def run_code(code: str) -> dict[str, Any]:
            found: dict[str, Any] = {}
            exec(code, found)  # noqa: S102 - the page's code is what is tested
            if client := found.get("tocsin"):
                clients.enter_context(client)
            return found

        yield run_code


class TestLaravel:
    @pytest.fixture
    async def crm(self, server: Embedded) -> AsyncIterator[asyncpg.Connection]:
        """A database with the tables of a Laravel application."""
        connection = await asyncpg.connect(server.url)
        await connection.execute("drop database if exists laravel with (force)")
        await connection.execute("create database laravel")
        await connection.close()
        connection = await asyncpg.connect(url_for(server, "laravel"))
        await connection.execute(
            """
            create table users (id bigserial primary key, name varchar(255) not null, email varchar(255) not null);
            create table notifications (
                id uuid primary key, type varchar(255) not null, notifiable_type varchar(255) not null,
                notifiable_id bigint not null, data text not null, read_at timestamp(0),
                created_at timestamp(0), updated_at timestamp(0)
            );
            insert into users (name, email)
                values ('Ada Byron King', 'ada@example.com'), ('Prince', 'prince@example.com');
            insert into notifications values
                ('621a5f2c-69ce-4dd4-863a-e2ae5e4025dd', 'App\\Notifications\\DealWon', 'App\\Models\\User', 1,
                 '{"message": "A deal was won"}', null, '2026-01-31 08:00:00', '2026-01-31 08:00:00'),
                ('721a5f2c-69ce-4dd4-863a-e2ae5e4025dd', 'App\\Notifications\\DealLost', 'App\\Models\\User', 1,
                 '{"title": "A deal was lost"}', '2026-01-30 09:00:00', '2026-01-30 08:00:00', '2026-01-30 08:00:00'),
                ('821a5f2c-69ce-4dd4-863a-e2ae5e4025dd', 'App\\Notifications\\DealWon', 'App\\Models\\User', 3,
                 '{"message": "For a deleted user"}', null, '2026-01-30 08:00:00', '2026-01-30 08:00:00');
            """
        )
        yield connection
        await connection.close()

    async def test_laravel_export_of_current_users_is_imported(self, api: Api, crm: asyncpg.Connection) -> None:
        [sql] = blocks("laravel", "sql")
        lines = "\n".join(str(row[0]) for row in await crm.fetch(sql))
        await imported(api, lines)
        first, second = (await api.inbox(1))["data"]
        assert (first["message"], first["read_at"]) == ("A deal was won", None)
        assert (second["message"], second["read_at"]) == ("A deal was lost", "2026-01-30 09:00:00")
        users = [(await api.as_service("GET", f"/directory/users/{id_}")).json() for id_ in (1, 2)]
        assert [(user["first_name"], user["last_name"]) for user in users] == [("Ada", "Byron King"), ("Prince", "-")]
        await imported(api, lines)
        assert (await api.inbox(1))["pagination"]["total"] == 2


class TestNovu:
    SUBSCRIBER = {"subscriberId": "1", "firstName": "Ada", "lastName": None, "locale": "en_US", "timezone": None}  # noqa: RUF012 - a record of a test
    READ = {  # noqa: RUF012 - as above
        "id": "68f0c1e2a1b2c3d4e5f60718",
        "subject": "Deal won",
        "body": "Acme signed",
        "isRead": True,
        "createdAt": "2026-01-31T08:00:00.000Z",
        "readAt": "2026-01-31T09:00:00.000Z",
    }

    async def test_novu_subscribers_and_notifications_are_imported(self, api: Api, functions: Functions) -> None:
        made = functions(blocks("novu", "python")[0])
        unread = {**self.READ, "id": "68f0c1e2a1b2c3d4e5f60719", "subject": None, "isRead": False, "readAt": None}
        lines = [made["user_line"](self.SUBSCRIBER)]
        lines += [made["notification_line"](self.SUBSCRIBER, each) for each in (self.READ, unread)]
        await imported(api, "\n".join(lines))
        found = {entry["message"]: entry["read_at"] for entry in (await api.inbox(1))["data"]}
        assert found == {"Deal won <br> Acme signed": "2026-01-31 09:00:00", "Acme signed": None}

    async def test_novu_trigger_becomes_an_event_posted_once(self, api: Api, functions: Functions) -> None:
        await api.people(1, 2, 4)
        await api.team(7, 1, 2)
        trigger = functions(blocks("novu", "python")[1])["trigger"]
        words = {"author": "Ada", "title": "the plan"}
        subscribers: tuple[Any, ...] = ("1", {"subscriberId": "1", "email": "ada@example.com"})
        ids = [await asyncio.to_thread(trigger, "comment-added", to, words, "t-1") for to in subscribers]
        topic = await asyncio.to_thread(trigger, "comment-added", {"type": "Topic", "topicKey": "7"}, words)
        for id_ in (*ids, topic):
            assert (await api.as_service("GET", f"/events/{id_}?wait=30")).json()["state"] == "delivered"
        assert [entry["message"] for entry in (await api.inbox(1))["data"]] == ["Ada commented on the plan"] * 2
        assert (await api.inbox(2))["pagination"]["total"] == 1


@pytest.fixture(scope="module")
async def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with Django and django-notifications-hq."""
    folder = tmp_path_factory.mktemp("django")
    lock = Path(__file__).parent / "django/requirements.lock"
    return str(await locked_environment(folder, lock) / "python")


class TestDjango:
    async def test_django_notifications_export_is_imported_with_read_state(
        self, api: Api, python: str, tmp_path: Path
    ) -> None:
        lines = await self.exported(python, tmp_path)
        await imported(api, lines)
        first, second = (await api.inbox(2))["data"]
        assert {first["message"], second["message"]} == {"ada closed", "ada commented on Sales <br> Please look"}
        assert {first["read"], second["read"]} == {True, False}
        team = (await api.as_service("GET", "/directory/teams/1")).json()
        assert (team["name"], team["users"]) == ("Sales", [2])
        await imported(api, lines)
        assert (await api.inbox(2))["pagination"]["total"] == 2

    async def exported(self, python: str, folder: Path) -> str:
        """Return what the guide's command prints in a project with some notifications."""
        commands = folder / "crm/management/commands"
        commands.mkdir(parents=True)
        (commands / "export_to_tocsin.py").write_text(blocks("django", "python")[0])
        (folder / "crm/__init__.py").touch()
        (folder / "settings.py").write_text(
            "SECRET_KEY = 'x' * 50\nUSE_TZ = True\nDEFAULT_AUTO_FIELD = 'django.db.models.AutoField'\n"
            "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'crm.sqlite3'}}\n"
            "INSTALLED_APPS = ['django.contrib.auth', 'django.contrib.contenttypes', 'notifications', 'crm']\n"
        )
        (folder / "fill.py").write_text(
            "import django\ndjango.setup()\n"
            "from django.contrib.auth.models import Group, User\nfrom notifications.signals import notify\n"
            "ada, grace = User.objects.create(username='ada'), User.objects.create(username='grace')\n"
            "sales = Group.objects.create(name='Sales')\ngrace.groups.add(sales)\n"
            "notify.send(ada, recipient=grace, verb='closed')\ngrace.notifications.mark_all_as_read()\n"
            "notify.send(ada, recipient=grace, verb='commented', target=sales, description='Please look')\n"
        )
        manage = ("env", "DJANGO_SETTINGS_MODULE=settings", f"PYTHONPATH={folder}", "PYTHONWARNINGS=ignore", python)
        for command in (("-m", "django", "migrate", "--verbosity", "0"), ("fill.py",)):
            status, said = await run(folder, *manage, *command)
            assert status == 0, said
        status, said = await run(folder, *manage, "-m", "django", "export_to_tocsin")
        assert status == 0, said
        return "\n".join(line for line in said.splitlines() if line.startswith("{"))

    async def test_django_notify_send_replacement_posts_to_users_and_groups(
        self, api: Api, functions: Functions
    ) -> None:
        await api.people(1, 2, 4)
        await api.team(7, 1, 2)
        send = functions(blocks("django", "python")[1])["send"]
        ada, grace, group = (Row(4, "Ada"), Row(2, "Grace"), Group(7, "Sales"))
        closed = await asyncio.to_thread(send, ada, grace, "closed")
        commented = await asyncio.to_thread(send, ada, group, "commented", "the plan")
        opened = await asyncio.to_thread(send, ada, iter([grace]), "opened")  # as a queryset, which is no list
        for id_ in (closed, commented, opened):
            assert (await api.as_service("GET", f"/events/{id_}?wait=30")).json()["state"] == "delivered"
        messages = [entry["message"] for entry in (await api.inbox(2))["data"]]
        assert messages == ["Ada opened", "Ada commented on the plan", "Ada closed"]
        assert (await api.inbox(1))["pagination"]["total"] == 1


class Row:
    """The attributes of a Django user that the guide's function reads."""

    def __init__(self, pk: int, name: str) -> None:
        self.pk = pk
        self.name = name

    def __str__(self) -> str:
        return self.name


class Group(Row):
    user_set = None
