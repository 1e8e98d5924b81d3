"""The command `tocsin`.

This module, `backups.py`, `data.py` and `running.py` declare the commands, and import nothing of the service. Each
function imports what it runs, so that a command loads only what it needs.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from tocsin.cli import backups, cells, data, terminal
from tocsin.cli.arguments import Cell, parse_duration
from tocsin.cli.running import load_cell, load_settings, read_settings, run_command, uncollected
from tocsin.cli.terminal import say
from tocsin.errors import Refusal
from tocsin.ids import MAX_ID

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
token = typer.Typer(no_args_is_help=True, help="Print tokens, to call the API with curl.")
app.add_typer(token, name="token")
catalogue = typer.Typer(no_args_is_help=True, help="The kinds of notification and their texts.")
app.add_typer(catalogue, name="catalogue")
app.add_typer(cells.app, name="cell")

DEFAULT_LIFETIME = "1h"

Content = Literal["full", "title", "none"]
Expires = Annotated[str, typer.Option(help="The lifetime of the token: 90s, 15m, 1h, 30d.")]
OneCell = Annotated[str | None, typer.Option(metavar="NAME", help="Work for one cell only. Default: for all.")]
Url = Annotated[str | None, typer.Option(help="The url of the service. Default: from the settings.")]


def main() -> None:
    """Run the command line. A `Refusal` or an `OSError` is printed to stderr as one sentence, with exit status 1."""
    terminal.open_standard_streams()
    logging.getLogger().addHandler(logging.NullHandler())  # what libraries log is for logs, which replace this
    # structlog would load `rich` for tracebacks that the log never shows: 80 modules and 4 MB. FastAPI would load
    # `pydantic.v1` to refuse models of it: 22 modules and 1.5 MB. Both do without them.
    absent: Any = None
    for module in ("rich", "pydantic.v1"):
        sys.modules.setdefault(module, absent)
    try:
        app()
    except Refusal as refusal:
        _end_with(str(refusal))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _end_with(f"{where}{error.strerror or error}.")


def _end_with(sentence: str) -> NoReturn:
    from tocsin import logs

    logs.refuse(terminal.escaped(sentence, lines=True))
    terminal.discard_output()
    sys.exit(1)


@app.callback(invoke_without_command=True)
def version(*, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Tocsin: the notification service that a business application plugs in."""
    if version:
        from tocsin import __version__

        say(__version__)
        raise typer.Exit


@app.command()
def serve(
    *,
    worker: Annotated[bool, typer.Option(help="Process the queue in this process too.")] = True,
    processes: Annotated[
        str, typer.Option(metavar="N|auto", help="Processes that share the port. auto: one for each core.")
    ] = "1",
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Serve reads only, without a worker; the database may be a standby.")
    ] = False,
    cell: OneCell = None,
    sibling: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve the API and process the queue. Without TOCSIN_DATABASE_URL, an embedded PostgreSQL is started."""
    from tocsin.cli.arguments import parse_processes

    count = parse_processes(processes)
    settings = load_settings()
    if read_only:
        settings = settings.model_copy(update={"read_only": "yes"})
    if count > 1:
        from tocsin.processes import serve as run_processes

        options = [*(() if worker else ("--no-worker",)), *(("--read-only",) if read_only else ())]
        options += ["--cell", cell] if cell else []
        run_command(run_processes(settings, count, options, cell), handles_signals=True)
        return
    with uncollected():
        from tocsin.serve import serve as run_service
        from tocsin.siblings import Siblings

    siblings = None if sibling is None else Siblings(sibling)
    run_command(run_service(settings, cell, with_worker=worker, siblings=siblings), handles_signals=True)


@app.command()
def worker(*, cell: OneCell = None) -> None:
    """Process the queue without serving the API. Any number of workers can run."""
    with uncollected():
        from tocsin.serve import work

    run_command(work(load_cell(cell) if cell else load_settings()), handles_signals=True)


@app.command()
def demo() -> None:
    """Serve sample users, and a page with their inboxes and simulated phones. Print its url."""
    with _demo_extra():
        from tocsin.demo.run import demo as run_demo

    run_command(run_demo(load_settings()), handles_signals=True)


@app.command()
def phones(
    folder: Annotated[Path, typer.Option(help="The folder for the keys, the certificate and the variables to set.")],
    port: Annotated[
        int,
        typer.Option(min=0, max=65531, help="The control port; the ports of the services follow. 0: any free ports."),
    ] = 0,
) -> None:
    """Simulate APNs, FCM and a browser push service for tests. Print the variables to set."""
    with _demo_extra():
        from tocsin_phones.serving import StartError
        from tocsin_phones.serving import serve as serve_phones

    async def refusing() -> None:
        try:
            await serve_phones(folder, port)
        except StartError as error:
            raise Refusal(str(error)) from None

    run_command(refusing(), handles_signals=True)


@app.command()
def migrate(*, cell: OneCell = None) -> None:
    """Apply pending migrations to the database, or to those of all cells, and exit."""
    from tocsin.cells import every_cell
    from tocsin.store import store

    settings = load_settings()

    async def only_migrate() -> None:
        for of_cell in every_cell(settings, cell):
            async with store(of_cell, alone=False, briefly=True):
                pass

    run_command(only_migrate())


@app.command()
def config() -> None:
    """Print all settings with their values; secrets are masked."""
    from tocsin.cli.config import described

    for line in described(read_settings()):
        say(line)


@app.command()
def send(  # noqa: PLR0913 - what a caller may say
    message: Annotated[str | None, typer.Argument(metavar="MESSAGE", help="The text of the notification.")] = None,
    user: Annotated[list[int] | None, typer.Option(help="The id of a user to notify. Can be repeated.")] = None,
    team: Annotated[list[int] | None, typer.Option(help="The id of a team to notify. Can be repeated.")] = None,
    file: Annotated[
        str | None, typer.Option(help="A file with an event as JSON, instead of MESSAGE. -: stdin.")
    ] = None,
    url: Url = None,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the final state of the event, and print it.")] = False,
) -> None:
    """Post an event to a running service, and print its id."""
    import asyncio

    from tocsin.auth.from_settings import signer_of
    from tocsin.cli import send as sending

    event = sending.event_of(message, user or [], team or [], file)
    settings = read_settings()
    sender = sending.EventSender.of(settings, signer_of(settings, "services"), url)
    say(id_ := asyncio.run(sender.post(event)))
    if wait:
        say(state := asyncio.run(sender.wait(id_)))
        if state == "failed":
            raise typer.Exit(1)


app.command("import")(data.import_)
app.command()(data.export)
app.command()(data.explain)
app.command()(data.replay)
app.command()(data.cancel)
app.command("sign-out")(data.sign_out)
app.command("post-role")(data.post_role)
app.command()(data.partition)
app.command()(data.relay)
app.command()(backups.backup)
app.command()(backups.restore)
app.command()(backups.upgrade)


@app.command()
def console(
    company_id: Annotated[int | None, typer.Option(min=1, max=MAX_ID, help="Show one company only.")] = None,
    role: Annotated[Literal["operator", "support", "viewer"], typer.Option(help="What the link permits.")] = "operator",
    url: Url = None,
) -> None:
    """Print a link to the operators' console. Anyone who has the link can use it for one hour."""
    from tocsin.auth.claims import ROLES
    from tocsin.auth.from_settings import signer_of
    from tocsin.auth.minting import mint_service
    from tocsin.cli.send import base_of, console_url_of

    settings = read_settings()
    signer = signer_of(settings, "services")
    made = mint_service(signer, "console", [ROLES[role]], timedelta(hours=1), company_id)
    page = f"{base_of(url)}/console" if url else console_url_of(settings)
    say(f"{page}#token={made}")


@app.command()
def doctor(
    *,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also check all rows, indexes and pages. It can take long.")
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="With --deep: correct wrong counts of inboxes.")] = False,
    cell: Cell = None,
) -> None:
    """Check settings, files, credentials and the database, and print what to do. Only --repair changes something."""
    import asyncio

    from tocsin.cli.doctor import examine

    if repair and not deep:
        raise Refusal("--repair needs --deep.")

    def progress(what: str) -> None:
        if sys.stderr.isatty():
            say(f"checking {what}", err=True)

    with contextlib.suppress(Refusal):  # as the owner of the data folder, too; a refusal is among the findings
        read_settings()
    found = asyncio.run(examine(deep=deep, repair=repair, progress=progress, cell=cell))
    for finding in found:
        say(str(finding))
    if any(finding.level == "FAIL" for finding in found):
        raise typer.Exit(1)


@app.command()
def openapi() -> None:
    """Print the OpenAPI document. No database is needed."""
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
    language: Annotated[str, typer.Option(help="The locale of the user, such as da or de-AT.")] = "en",
    content: Annotated[
        Content | None, typer.Option(help="How much a push shows. Default: TOCSIN_PUSH_CONTENT.")
    ] = None,
) -> None:
    """Print the pushes of a sample of a kind. No database and no keys are needed."""
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
        str | None, typer.Option(help="The url of the service for browsers. Default: from the settings.")
    ] = None,
) -> None:
    """Print the script tag of the web inbox, with the version and the integrity hash of the file."""
    from tocsin.api.pages import script_of
    from tocsin.cli.send import base_of, url_of

    say(script_of(base_of(url or url_of(read_settings()))))


@catalogue.command()
def check(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="A folder with your own kinds. Default: TOCSIN_CATALOGUE_DIR."),
    ] = None,
) -> None:
    """Check the catalogue. Print all errors, or how many kinds and languages it has."""
    from tocsin.catalogue import Catalogue

    found = Catalogue.load(*([folder] if folder else read_settings().catalogue_folders))
    say(f"{len(found.kinds)} kinds in {len(found.languages)} languages: {', '.join(found.languages)}")


@token.command()
def user(
    id_: Annotated[int, typer.Argument(metavar="ID", min=1, max=MAX_ID, help="The id of the user.")],
    expires: Expires = DEFAULT_LIFETIME,
) -> None:
    """Print a user token, which gives access to the inbox of that user."""
    from tocsin.auth.from_settings import signer_of
    from tocsin.auth.minting import mint_user

    say(mint_user(signer_of(read_settings(), "users"), id_, parse_duration(expires)))


@token.command()
def service(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the service.")],
    scope: Annotated[
        list[str],
        typer.Option(
            help="A scope: events:write, directory:write, operations, operations:support or operations:read."
            " Can be repeated."
        ),
    ],
    company_id: Annotated[int | None, typer.Option(min=1, max=MAX_ID, help="Limit the token to one company.")] = None,
    expires: Expires = DEFAULT_LIFETIME,
) -> None:
    """Print a service token."""
    from tocsin.auth.claims import SCOPES
    from tocsin.auth.from_settings import signer_of
    from tocsin.auth.minting import mint_service

    if unknown := set(scope) - SCOPES:
        raise Refusal(f"Unknown scope {' or '.join(sorted(unknown))}: use {', '.join(sorted(SCOPES))}.")
    signer = signer_of(read_settings(), "services")
    lifetime = parse_duration(expires)
    say(mint_service(signer, name, scope, lifetime, company_id))
    until = (datetime.now(UTC) + lifetime).strftime("%Y-%m-%d %H:%M:%S")
    longer = "; --expires 30d makes one that lasts longer" if expires == DEFAULT_LIFETIME else ""
    say(f"This token expires at {until} UTC, after {expires}{longer}.", err=True)


@contextlib.contextmanager
def _demo_extra() -> Iterator[None]:
    """Exit with the command to install, if the stand-ins for push services are not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "tocsin_phones":
            raise
        raise SystemExit(
            'tocsin: The stand-ins for push services are not installed: pip install "tocsin[demo]".'
        ) from None
