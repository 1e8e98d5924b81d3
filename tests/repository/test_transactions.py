"""The recipes of the guides post what is committed and nothing else, whenever the application is killed."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from tests.support.database import url_for
from tests.support.programs import locked_environment, run
from tests.support.service import SECRET, Api
from tests.support.waiting import reaches
from tocsin import posters
from tocsin.auth.minting import mint_service
from tocsin.postgres.supervisor import Embedded
from tocsin.relay import Relay

GUIDES = Path(__file__).parents[2] / "docs/guides"
LOCK = Path(__file__).parent / "transactions/requirements.lock"

pytestmark = pytest.mark.processes

BEGIN = {
    "django": """
import os, sys
from urllib.parse import parse_qs, urlsplit
import django
from django.conf import settings
url = urlsplit(sys.argv[1])
place = {key.upper(): values[0] for key, values in parse_qs(url.query).items()}
database = {"ENGINE": "django.db.backends.postgresql", "NAME": url.path[1:], **place}
settings.configure(DATABASES={"default": database}, INSTALLED_APPS=["crm"], USE_TZ=True)
django.setup()
from django.db import transaction
from crm.models import notify
begin, of = transaction.atomic, lambda _: ()
""",
    "sqlalchemy": """
import os, sys
import psycopg
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from crm.models import notify
begin = sessionmaker(create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(sys.argv[1]))).begin
of = lambda session: (session,)
""",
}
"""Programs that begin a transaction with `begin`; `of` returns what `notify` takes before the event."""

PROGRAM = """
event = {"type": "custom", "notify": {"users": [1]}, "params": {"body": "The contract is signed."}}
with begin() as session:
    print(notify(*of(session), event), flush=True)
    if sys.argv[2] == "rolled back":
        raise SystemExit
    if sys.argv[2] == "killed before the commit":
        os.kill(os.getpid(), 9)
if sys.argv[2] == "killed after the commit":
    os.kill(os.getpid(), 9)
"""

ENDS = ("rolled back", "killed before the commit", "killed after the commit", "committed")


@pytest.fixture(scope="module")
async def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with Django and SQLAlchemy."""
    return str(await locked_environment(tmp_path_factory.mktemp("transactions"), LOCK) / "python")


def blocks(page: str, language: str) -> list[str]:
    text = (GUIDES / f"{page}.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


async def ids_of(python: str, folder: Path, page: str, framework: str, url: str) -> dict[str, str]:
    """Run the recipe of a page in transactions with each end; return the ids of the events."""
    recipe = blocks(page, "py")[list(BEGIN).index(framework)]
    (folder / "crm").mkdir()
    (folder / "crm/__init__.py").touch()
    (folder / "crm/models.py").write_text(recipe)
    (folder / "program.py").write_text(BEGIN[framework] + PROGRAM)
    found = {}
    for end in ENDS:
        status, said = await run(folder, python, "program.py", url, end)
        assert (status == -9) == end.startswith("killed"), said
        found[end] = said.strip()
    return found


@pytest.mark.parametrize("framework", BEGIN)
async def test_recipe_posts_in_a_transaction_what_is_committed(
    api: Api, server: Embedded, python: str, tmp_path: Path, framework: str
) -> None:
    await api.people(1)
    await posters.permit(api.app_state.database, "tocsin", "crm", 1)
    ids = await ids_of(python, tmp_path, "post-in-a-transaction", framework, url_for(server, "busy"))
    await reaches(lambda: api.ids(1), [ids["committed"], ids["killed after the commit"]])
    assert len(set(ids.values())) == len(ENDS)


@pytest.mark.parametrize("framework", BEGIN)
async def test_recipe_writes_into_an_outbox_what_is_committed(
    api: Api, python: str, tmp_path: Path, framework: str, outbox: str
) -> None:
    await api.people(1)
    ids = await ids_of(python, tmp_path, "outbox", framework, outbox)
    token = mint_service(SECRET, "crm", ["events:write"], timedelta(hours=1))
    relay = Relay(outbox, "public.notifications_outbox", str(api.http.base_url), lambda: token)
    relaying = asyncio.create_task(relay.run())
    await reaches(lambda: api.ids(1), [ids["committed"], ids["killed after the commit"]])
    relay.stopping.set()
    await relaying


@pytest.fixture
async def outbox(server: Embedded) -> AsyncIterator[str]:
    """The url of a database with the table of the page."""
    owner = await asyncpg.connect(server.url)
    await owner.execute("drop database if exists with_outbox with (force)")
    await owner.execute("create database with_outbox")
    url = url_for(server, "with_outbox")
    connection = await asyncpg.connect(url)
    await connection.execute(blocks("outbox", "sql")[0])
    await connection.close()
    yield url
    await owner.execute("drop database with_outbox with (force)")
    await owner.close()
