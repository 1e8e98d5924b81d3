"""The command `tocsin`."""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn
from uuid import UUID

import typer
import uvloop
from pydantic import SecretStr

from tocsin import __version__, logs
from tocsin.cli import terminal
from tocsin.cli.terminal import say
from tocsin.db.url import masked
from tocsin.errors import Refusal
from tocsin.ids import MAX_ID
from tocsin.settings import PREFIX, Settings, read_settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
token = typer.Typer(no_args_is_help=True, help="Print a token, so that everything can be tried with curl.")
app.add_typer(token, name="token")
catalogue = typer.Typer(no_args_is_help=True, help="The kinds of notification, and how they are told.")
app.add_typer(catalogue, name="catalogue")

_LIFETIME = re.compile(r"([1-9]\d{0,5})([smhd])")
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Content = Literal["full", "title", "none"]
Expires = Annotated[str, typer.Option(help="How long it is good for: 90s, 15m, 1h, 30d.")]


def main() -> None:
    """Run the command line; a refusal, and whatever the system refuses, is one sentence on stderr and status 1."""
    terminal.open_standard_streams()
    try:
        app()
    except Refusal as refusal:
        _end_with(str(refusal))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _end_with(f"{where}{error.strerror or error}.")


def _end_with(sentence: str) -> NoReturn:
    logs.refuse(terminal.spelt_out(sentence, lines=True))
    terminal.forget_unwritten()
    sys.exit(1)


@app.callback(invoke_without_command=True)
def version(*, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Tocsin: the notification service that a business application plugs in."""
    if version:
        say(__version__)
        raise typer.Exit


@app.command()
def serve(*, worker: Annotated[bool, typer.Option(help="Work in this process too.")] = True) -> None:
    """Serve the API, and do the work. Where no database is set, an embedded PostgreSQL runs as its child."""
    from tocsin.serve import serve as run_service

    settings = _settings()
    _run(run_service(settings, with_worker=worker))


@app.command()
def worker() -> None:
    """Work without serving; any number of these may run."""
    from tocsin.serve import work

    _run(work(_settings()))


@app.command()
def demo() -> None:
    """Serve sample users, and a page with their inboxes and fake phones. Print where it is."""
    with _demo_extra():
        from tocsin.demo.run import demo as run_demo

    _run(run_demo(_settings()))


@app.command()
def phones(
    folder: Annotated[Path, typer.Option(help="Where to write keys, certificate and the variables to set.")],
    port: Annotated[
        int, typer.Option(min=0, max=65531, help="The control port; those of the services follow. 0: free ones.")
    ] = 0,
) -> None:
    """Stand in for APNs, FCM and a browser push service, for tests. Print what to set."""
    with _demo_extra():
        from tocsin_phones.serving import StartError
        from tocsin_phones.serving import serve as serve_phones

    async def refusing() -> None:
        try:
            await serve_phones(folder, port)
        except StartError as error:
            raise Refusal(str(error)) from None

    _run(refusing())


@app.command()
def migrate() -> None:
    """Bring the database's schema up to date, and nothing else."""
    from tocsin.startup import store

    async def only_migrate() -> None:
        async with store(_settings(), alone=False):
            pass

    _run(only_migrate())


@app.command()
def config() -> None:
    """Print the settings in effect, secrets masked."""
    settings = read_settings()
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        origin = "set" if name in settings.model_fields_set else "default"
        say(f"{PREFIX}{name.upper()}={_shown(name, value)}  # {origin}; {field.description}")


@app.command()
def send(  # noqa: PLR0913 - what a caller may say
    message: Annotated[str | None, typer.Argument(metavar="MESSAGE", help="What to tell them.")] = None,
    user: Annotated[list[int] | None, typer.Option(help="A user to notify; may be repeated.")] = None,
    team: Annotated[list[int] | None, typer.Option(help="A team to notify; may be repeated.")] = None,
    file: Annotated[str | None, typer.Option(help="A file with the event as JSON instead. -: stdin.")] = None,
    url: Annotated[str | None, typer.Option(help="Where the service is reached; default: as the settings say.")] = None,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait, and print what became of it.")] = False,
) -> None:
    """Post an event to the running service, and print its id."""
    from tocsin.auth.from_settings import signer_of
    from tocsin.cli import send as sending

    event = sending.event_of(message, user or [], team or [], file)
    settings = read_settings()
    target = sending.Target.of(settings, signer_of(settings, "services"), url)
    say(id_ := asyncio.run(target.post(event)))
    if wait:
        say(state := asyncio.run(target.wait(id_)))
        if state == "failed":
            raise typer.Exit(1)


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Lines of JSON, as an export has them. -: stdin.")],
) -> None:
    """Import users, teams, devices and history. All is checked first, then applied in steps."""
    from tocsin.cli.transfer import import_file

    settings = _settings()

    async def run() -> None:
        counts = await import_file(settings, file, lambda line: say(line, err=True))
        say(", ".join(f"{count:,} {part}" for part, count in counts.items()))

    _run(run())


@app.command()
def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write. -: stdout.")] = "-",
    company_id: Annotated[int | None, typer.Option(min=1, max=MAX_ID, help="Of one company.")] = None,
) -> None:
    """Export users, teams, devices and history, as `import` takes them. The tokens of devices are in it."""
    from tocsin.cli.transfer import export_file

    settings = _settings()

    async def run() -> None:
        say(f"{await export_file(settings, file, company_id):,} lines", err=True)

    _run(run())


@app.command()
def explain(
    event: Annotated[str | None, typer.Argument(metavar="EVENT", help="An event's id.")] = None,
    person: Annotated[int | None, typer.Argument(metavar="USER", help="Whom to explain it for.")] = None,
    user: Annotated[int | None, typer.Option(help="Explain all of this user instead.")] = None,
    since: Annotated[str, typer.Option(help="From when: 10:00 today (UTC), or 90m, 12h, 3d ago.")] = "24h",
) -> None:
    """Say in words what came to somebody, what did not, and why."""
    from tocsin import explain
    from tocsin.startup import pool, store

    settings, moment = _settings(), _moment(since)
    if user is not None:
        ask = partial(explain.of_user, user_id=user, since=moment)
    elif event is not None and person is not None:
        ask = partial(explain.of_event, event_id=_uuid(event), user_id=person)
    else:
        raise Refusal("Give an event and a user, or --user.")

    async def run() -> None:
        async with store(settings, alone=False, quiet=True) as url, pool(url, 1) as database:
            async for line in ask(database):
                say(line)

    _run(run())


@app.command()
def replay(
    events: Annotated[
        list[str] | None, typer.Argument(metavar="EVENT", help="Ids of events. None: all since a time.")
    ] = None,
    lane: Annotated[str | None, typer.Option(help="Only the pushes of a lane, such as apns/default.")] = None,
    since: Annotated[str, typer.Option(help="From when: 10:00 today (UTC), or 90m, 12h, 3d ago.")] = "24h",
) -> None:
    """Set going once more what was given up: events and pushes."""
    from tocsin import dead_letters
    from tocsin.pubsub import PubSub
    from tocsin.push.apps import plan
    from tocsin.startup import pool, store

    settings = _settings()
    ids, moment = ([_uuid(id_) for id_ in events] if events else None), _moment(since)

    async def run() -> None:
        async with store(settings, alone=False, quiet=True) as url, pool(url, 2) as database:
            pubsub = PubSub(url, database)
            done = await dead_letters.replay(database, pubsub, ids, moment, lane)
            await pubsub.close()
            lanes = [planned.name for planned in plan(settings)]
            if lane and not done.pushes and lane not in lanes:
                raise Refusal(f"Unknown lane {lane!r}: use {', '.join(lanes) or 'none, because no keys are set'}.")
            say(f"Requeued {done.jobs} events and {done.pushes} pushes.")

    _run(run())


@app.command()
def cancel(
    event: Annotated[str, typer.Argument(metavar="EVENT", help="Its id.")],
) -> None:
    """Cancel an event that is not delivered yet, whoever posted it. One that is on its way goes no further."""
    from tocsin import events
    from tocsin.errors import NotFound, TooLate
    from tocsin.pubsub import PubSub
    from tocsin.startup import pool, store

    settings, id_ = _settings(), _uuid(event)

    async def run() -> None:
        async with store(settings, alone=False, quiet=True) as url, pool(url, 2) as database:
            pubsub = PubSub(url, database)
            try:
                await events.cancel(database, pubsub, id_, events.Viewer(), "tocsin cancel")
            except NotFound:
                raise Refusal(f"There is no event {id_}.") from None
            except TooLate:
                raise Refusal(f"Event {id_} is delivered: it is too late to cancel it.") from None
            await pubsub.close()
            say(f"Cancelled event {id_}.")

    _run(run())


@app.command()
def console(
    company_id: Annotated[int | None, typer.Option(min=1, max=MAX_ID, help="Show one company alone.")] = None,
    url: Annotated[str | None, typer.Option(help="Where the service is reached; default: as the settings say.")] = None,
) -> None:
    """Print a link to the operators' console. For an hour it lets in whoever has it."""
    from tocsin.auth.from_settings import signer_of
    from tocsin.auth.minting import mint_service
    from tocsin.cli.send import operations_url_of

    settings = read_settings()
    signer = signer_of(settings, "services")
    made = mint_service(signer, "console", ["operations"], timedelta(hours=1), company_id)
    say(f"{(url or operations_url_of(settings)).rstrip('/')}/console#token={made}")


@app.command()
def doctor() -> None:
    """Say what is wrong with all that the service stands on, and what to do. Nothing is changed."""
    from tocsin.cli.doctor import examine

    found = asyncio.run(examine())
    for finding in found:
        say(str(finding))
    if any(finding.level == "FAIL" for finding in found):
        raise typer.Exit(1)


@app.command()
def openapi() -> None:
    """Print the OpenAPI document; no database is needed."""
    from tocsin.api.app import build
    from tocsin.api.openapi import document
    from tocsin.catalogue import Catalogue
    from tocsin.notifications import to_json

    settings = read_settings()
    found = Catalogue.load(*settings.catalogue_folders)
    say(to_json(document(build(), found, settings.base_url or settings.root_path)))


@app.command()
def preview(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="A kind of the catalogue, such as note.")],
    language: Annotated[str, typer.Option(help="A user's locale, such as da or de-AT; else it is English.")] = "en",
    content: Annotated[
        Content | None, typer.Option(help="How much a push shows; default: as TOCSIN_PUSH_CONTENT says.")
    ] = None,
) -> None:
    """Print what phones and browsers get for the sample of a kind. No database and no key is needed."""
    from tocsin.catalogue import Catalogue
    from tocsin.cli.preview import TOPIC, pretty, previewed

    settings = read_settings()
    found = Catalogue.load(*settings.catalogue_folders)
    try:
        shown = previewed(found, kind, language, content or settings.push_content, topic=settings.apns_topic or TOPIC)
    except Refusal as refusal:
        say(f"tocsin: {refusal}", err=True)
        raise typer.Exit(2) from None
    say(pretty(shown), lines=True)


@app.command()
def inbox(
    url: Annotated[
        str | None, typer.Option(help="Where browsers reach the service; default: as the settings say.")
    ] = None,
) -> None:
    """Print the line that takes the web inbox into a page. It holds the file's version and integrity."""
    from tocsin.api.pages import script_of
    from tocsin.cli.send import url_of

    say(script_of((url or url_of(read_settings())).rstrip("/")))


@catalogue.command()
def check(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="A folder of your own; default: as TOCSIN_CATALOGUE_DIR says."),
    ] = None,
) -> None:
    """Read the catalogue as a start would. Say all that is wrong with it, or what there is."""
    from tocsin.catalogue import Catalogue

    found = Catalogue.load(*([folder] if folder else read_settings().catalogue_folders))
    say(f"{len(found.kinds)} kinds in {len(found.languages)} languages: {', '.join(found.languages)}")


@token.command()
def user(
    id_: Annotated[int, typer.Argument(metavar="ID", min=1, max=MAX_ID, help="The id.")],
    expires: Expires = "1h",
) -> None:
    """Print a user's token, which opens the user's own inbox."""
    from tocsin.auth.from_settings import signer_of
    from tocsin.auth.minting import mint_user

    say(mint_user(signer_of(read_settings(), "users"), id_, _lifetime(expires)))


@token.command()
def service(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the service is called.")],
    scope: Annotated[
        list[str], typer.Option(help="A right: events:write, directory:write or operations; may be repeated.")
    ],
    company_id: Annotated[int | None, typer.Option(min=1, max=MAX_ID, help="Bind it to one company.")] = None,
    expires: Expires = "1h",
) -> None:
    """Print a service's token."""
    from tocsin.auth.claims import SCOPES
    from tocsin.auth.from_settings import signer_of
    from tocsin.auth.minting import mint_service

    if unknown := set(scope) - SCOPES:
        raise Refusal(f"Unknown scope {' or '.join(sorted(unknown))}: use {', '.join(sorted(SCOPES))}.")
    signer = signer_of(read_settings(), "services")
    lifetime = _lifetime(expires)
    say(mint_service(signer, name, scope, lifetime, company_id))
    until = (datetime.now(UTC) + lifetime).strftime("%Y-%m-%d %H:%M:%S")
    say(f"This token expires at {until} UTC, after {expires}; --expires 30d makes one that lasts longer.", err=True)


@contextlib.contextmanager
def _demo_extra() -> Iterator[None]:
    """Say what to install where the stand-ins for push services are not."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "tocsin_phones":
            raise
        raise SystemExit('tocsin: This needs the stand-ins for push services: pip install "tocsin[demo]".') from None


def _settings() -> Settings:
    """Return the settings, and write the log as they say; of settings that are refused, as the environment says."""
    logs.configure("json" if os.environ.get(f"{PREFIX}LOG_FORMAT") == "json" else "console")
    settings = read_settings()
    logs.configure(settings.log_format)
    return settings


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a command that needs the database, and say in a sentence what that refuses."""
    from tocsin.db.errors import REFUSALS, sentence_on

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(coroutine)
        except REFUSALS as error:
            raise Refusal(sentence_on(error)) from error


def _lifetime(text: str) -> timedelta:
    found = _LIFETIME.fullmatch(text)
    if not found:
        raise Refusal(f"{text!r} is not a duration: write it like 90s, 15m, 1h or 30d.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _uuid(text: str) -> UUID:
    from tocsin.ids import parsed_uuid

    found = parsed_uuid(text)
    if found is None:
        raise Refusal(f"{text!r} is not the id of an event.")
    return found


def _moment(text: str) -> datetime:
    """Return a moment in the past: a time of today in UTC, or so long ago."""
    now = datetime.now(UTC)
    clock = _CLOCK.fullmatch(text)
    if clock:
        return now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
    if not _LIFETIME.fullmatch(text):
        raise Refusal(f"{text!r} is not a time: write it like 10:00 (today, UTC), or 90m, 12h or 3d ago.")
    return now - _lifetime(text)


def _shown(name: str, value: Any) -> str:
    """Return a setting as text; of a url all but the password, of NATS all but who logs in, which may be a token."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if value is None:
        return ""
    text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    is_nats = name == "nats_url"
    return ",".join(masked(each, user_too=is_nats) for each in (text.split(",") if is_nats else [text]))
