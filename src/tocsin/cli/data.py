"""Commands that work on the database, whether or not a service runs: import, export, explain, replay, partition."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tocsin.cli.arguments import Cell, parse_event_id, parse_time
from tocsin.cli.running import cell_hint, load_cell, load_settings, open_database, run_command
from tocsin.cli.terminal import say
from tocsin.errors import Refusal
from tocsin.ids import MAX_ID

Since = Annotated[str, typer.Option(help="The start: 10:00 today (UTC), or 90m, 12h, 3d ago.")]


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Lines of JSON, as `export` writes them. -: stdin.")],
    cell: Cell = None,
) -> None:
    """Import users, teams, devices and notifications. All lines are checked before the first is applied."""
    from tocsin.cells import other_cells
    from tocsin.cli.transfer import import_file

    others, settings = other_cells(load_settings(), cell), load_cell(cell)

    async def run() -> None:
        counts = await import_file(settings, file, lambda line: say(line, err=True), others)
        say(", ".join(f"{count:,} {part}" for part, count in counts.items()))

    run_command(run())


def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write. -: stdout.")] = "-",
    company_id: Annotated[int | None, typer.Option(min=1, max=MAX_ID, help="Export one company only.")] = None,
    cell: Cell = None,
) -> None:
    """Export users, teams, devices and notifications, for `import`. The file contains the tokens of devices."""
    from tocsin.cli.transfer import export_file

    settings = load_cell(cell)

    async def run() -> None:
        say(f"{await export_file(settings, file, company_id, cell_hint(cell)):,} lines", err=True)

    run_command(run())


def explain(
    event: Annotated[str | None, typer.Argument(metavar="EVENT", help="The id of an event.")] = None,
    person: Annotated[int | None, typer.Argument(metavar="USER", min=1, max=MAX_ID, help="The id of a user.")] = None,
    user: Annotated[
        int | None, typer.Option(min=1, max=MAX_ID, help="Explain all events for this user instead.")
    ] = None,
    since: Since = "24h",
    cell: Cell = None,
) -> None:
    """Explain what a user received, what not, and why."""
    from tocsin import explain

    settings, start = load_cell(cell), parse_time(since)
    if user is not None:
        ask = partial(explain.of_user, user_id=user, since=start)
    elif event is not None and person is not None:
        ask = partial(explain.of_event, event_id=parse_event_id(event), user_id=person)
    else:
        raise Refusal("Give an event and a user, or --user.")

    async def run() -> None:
        async with open_database(settings, 1) as (database, _):
            async for line in ask(database):
                say(line)

    try:
        run_command(run())
    except Refusal as error:
        raise Refusal(f"{error}{cell_hint(cell)}") from error


def replay(
    events: Annotated[
        list[str] | None, typer.Argument(metavar="EVENT", help="Ids of events. Without: all since --since.")
    ] = None,
    lane: Annotated[str | None, typer.Option(help="Only the pushes of one lane, such as apns/default.")] = None,
    since: Since = "24h",
    cell: Cell = None,
) -> None:
    """Retry events and pushes that were given up."""
    from tocsin import dead_letters
    from tocsin.audit import actor_of_command
    from tocsin.push.apps import plan

    settings = load_cell(cell)
    ids, start = ([parse_event_id(id_) for id_ in events] if events else None), parse_time(since)

    async def run() -> None:
        async with open_database(settings) as (database, pubsub):
            actor = actor_of_command("tocsin replay")
            if ids:
                done = await dead_letters.replay(database, pubsub, ids, start, actor, lane)
            else:
                done = await dead_letters.replay_all(database, pubsub, start, actor, lane)
        lanes = [planned.name for planned in plan(settings)]
        if lane is not None and not done.pushes and lane not in lanes:
            raise Refusal(f"Unknown lane {lane!r}: use {', '.join(lanes) or 'none, because no keys are set'}.")
        hint = "" if done.jobs or done.pushes else cell_hint(cell)
        if ids and not done.jobs and not done.pushes:
            what = f"event {ids[0]}" if len(ids) == 1 else "these events"
            raise Refusal(f"There is no dead letter of {what}.{hint}")
        say(f"Requeued {done.jobs} events and {done.pushes} pushes.{hint}")

    run_command(run())


def sign_out(
    subject: Annotated[
        str | None,
        typer.Argument(metavar="SUBJECT", help="Whose sessions: the name after `operator` in the audit log."),
    ] = None,
    *,
    everyone: Annotated[bool, typer.Option("--all", help="End the sessions of all people.")] = False,
    cell: Cell = None,
) -> None:
    """End the console sessions of a person, or of all, at once."""
    from tocsin import console_sessions
    from tocsin.audit import actor_of_command

    if bool(subject) == everyone:
        raise Refusal("Name the person whose sessions are to end, or use --all.")
    settings = load_cell(cell)

    async def run() -> None:
        async with open_database(settings) as (database, _):
            ended = await console_sessions.finish_all(database, subject or None, actor_of_command("tocsin sign-out"))
        say(f"Ended {ended} session{'' if ended == 1 else 's'}.")

    run_command(run())


def partition(
    *,
    abandon: Annotated[bool, typer.Option("--abandon", help="Delete the copies of a run that did not end.")] = False,
    cell: Cell = None,
) -> None:
    """Divide the tables of notifications by user and by month, while the service runs. It can be repeated."""
    from tocsin import partitioning
    from tocsin.store import existing_store

    settings = load_cell(cell)

    async def run() -> None:
        async with existing_store(settings) as url:
            await (partitioning.abandon if abandon else partitioning.partition)(url, say)

    run_command(run())


def post_role(  # noqa: PLR0913 - what a caller may say
    role: Annotated[
        str, typer.Argument(metavar="ROLE", help="A role of the database that your application logs in as.")
    ],
    company_id: Annotated[
        int | None, typer.Option(min=1, max=MAX_ID, help="The company whose users it notifies.")
    ] = None,
    service: Annotated[
        str | None, typer.Option(help="The service that it posts as. Default: the name of the role.")
    ] = None,
    *,
    all_companies: Annotated[
        bool, typer.Option("--all-companies", help="It may notify users of all companies.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the right to post from it.")] = False,
    cell: Cell = None,
) -> None:
    """Let a database role post events in its own transactions, by `select tocsin.post(...)`."""
    from tocsin import posters
    from tocsin.auth.claims import is_service_name

    name = service or role
    if (company_id is not None) + all_companies + remove != 1:
        raise Refusal("Use one of --company-id, --all-companies and --remove.")
    if not is_service_name(name):
        raise Refusal(f"{name!r} cannot be the name of a service: use --service.")
    settings = load_cell(cell)

    async def run() -> None:
        async with open_database(settings, 1) as (database, _):
            if remove:
                await posters.withdraw(database, role)
            else:
                await posters.permit(database, role, name, company_id)
        whom = "all companies" if company_id is None else f"company {company_id}"
        say(f"The role {role} may {'no longer post events' if remove else f'post events for {whom} as {name}'}.")

    run_command(run())


def relay(
    database: Annotated[
        str, typer.Option(envvar="OUTBOX_DATABASE_URL", help="The url of the PostgreSQL database with the outbox.")
    ],
    table: Annotated[str, typer.Option(help="The table, with its schema.")] = "public.notifications_outbox",
    service: Annotated[str, typer.Option(help="The service as which it posts.")] = "relay",
    token_file: Annotated[
        Path | None, typer.Option(help="A file with a service token, read for each request. Default: one is made.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="The url of the service. Default: from the settings.")] = None,
) -> None:
    """Post the events of an outbox, a table of your own database, until a signal ends it."""
    from tocsin.cli.send import base_of, tokens, url_of
    from tocsin.files import setting_file
    from tocsin.relay import Relay
    from tocsin.signals import on_signals

    if not database:
        raise Refusal("Give the url of the database with the outbox by --database, or by OUTBOX_DATABASE_URL.")
    settings = load_settings()

    def token_of(file: Path) -> str:
        return setting_file(file, "The token file").decode().strip()

    try:
        token = partial(token_of, token_file) if token_file else tokens(settings, service)
    except Refusal as error:
        raise Refusal(f"{error} Or give a file with a service token by --token-file.") from error
    token()  # a file that cannot be read is refused at the start
    relaying = Relay(database, table, base_of(url or url_of(settings)), token)

    async def run() -> None:
        on_signals(relaying.stopping.set)
        await relaying.run()

    run_command(run(), handles_signals=True)


def cancel(
    event: Annotated[str, typer.Argument(metavar="EVENT", help="The id of the event.")],
    cell: Cell = None,
) -> None:
    """Cancel an event of any service that is not delivered yet. An event that is being delivered stops."""
    from tocsin import cancellation
    from tocsin.audit import actor_of_command
    from tocsin.errors import NotFound, TooLate
    from tocsin.event_status import Viewer

    settings, id_ = load_cell(cell), parse_event_id(event)

    async def run() -> None:
        async with open_database(settings) as (database, pubsub):
            try:
                actor = actor_of_command("tocsin cancel")
                await cancellation.cancel(database, pubsub, id_, Viewer(), actor, "tocsin cancel")
            except NotFound:
                raise Refusal(f"There is no event {id_}.{cell_hint(cell)}") from None
            except TooLate:
                raise Refusal(f"Event {id_} is delivered: it is too late to cancel it.") from None
        say(f"Cancelled event {id_}.")

    run_command(run())
