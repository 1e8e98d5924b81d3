"""What Laravel sends to its table for the same work, as plain SQL by pgbench: there is neither HTTP nor PHP."""

import json
import time
from pathlib import Path

from bench.measure import pgbench
from bench.peers.work import BODY, MEMBERS, OWNERS, PAGE, SIZE, TEAM, TITLE
from bench.service import Service, database

_USER, _NOTE = r"App\Models\User", r"App\Notifications\Note"
_DATA = json.dumps({"title": TITLE, "body": BODY, "case": 4711})
_OWNER = f"\\set owner random({OWNERS.start}, {OWNERS.stop - 1})\n"
_OWN = f"notifiable_type = '{_USER}' and notifiable_id = :owner"
_ID = "md5(:owner::int || '-' || :number::int)::uuid"

_POST = f"""{_OWNER}\
insert into laravel.notifications
 values (gen_random_uuid(), '{_NOTE}', '{_USER}', :owner, '{_DATA}', null, now(), now());
"""  # noqa: S608 - made of constants
_PAGE = f"""{_OWNER}\
select * from laravel.notifications where {_OWN} order by created_at desc limit {PAGE};
select count(*) from laravel.notifications where {_OWN} and read_at is null;
"""  # noqa: S608 - made of constants
_MARK = f"""{_OWNER}\
\\set number random(1, {SIZE})
select * from laravel.notifications where {_OWN} and id = {_ID} limit 1;
update laravel.notifications set read_at = now(), updated_at = now() where id = {_ID};
"""  # noqa: S608 - made of constants
_TO_TEAM = """
insert into laravel.notifications
select gen_random_uuid(), $2, $3, user_id, $4, null, now(), now() from laravel.team_user where team_id = $1
"""
_FILL = """
insert into laravel.notifications
select md5(owner || '-' || number)::uuid, $3, $4, owner, $5, null, moment, moment
from generate_series(1, $6::int) as number, generate_series($1::int, $2::int) as owner,
     lateral (select localtimestamp - make_interval(mins => $6 - number) as moment) as made
order by number, owner
"""


class Laravel:
    """The table on the server of a service."""

    def __init__(self, running: Service) -> None:
        self._running = running

    async def fill(self) -> None:
        """Create the table with the inboxes and the team."""
        async with database(self._running) as connection:
            await connection.execute(Path(__file__).with_name("laravel.sql").read_text("utf-8"))
            await connection.execute(_FILL, OWNERS.start, OWNERS.stop - 1, _NOTE, _USER, _DATA, SIZE)
            await connection.execute(
                "insert into laravel.team_user select $1, id from generate_series($2::int, $3::int) as member (id)",
                *(TEAM, MEMBERS.start, MEMBERS.stop - 1),
            )
            await connection.execute("vacuum analyze laravel.notifications, laravel.team_user")

    async def posts(self, seconds: float) -> float:
        """Return the notifications a second, to one user each."""
        return await pgbench(self._running, _POST, seconds)

    async def pages(self, seconds: float) -> float:
        """Return the pages a second, with the number of unread notifications."""
        return await pgbench(self._running, _PAGE, seconds)

    async def marks(self, seconds: float) -> float:
        """Return the notifications a second that are marked as read, by what loads and saves each."""
        return await pgbench(self._running, _MARK, seconds)

    async def team(self) -> float:
        """Return the notifications a second of one to the team, by one statement."""
        async with database(self._running) as connection:
            began = time.perf_counter()
            await connection.execute(_TO_TEAM, TEAM, _NOTE, _USER, _DATA)
            return len(MEMBERS) / (time.perf_counter() - began)
