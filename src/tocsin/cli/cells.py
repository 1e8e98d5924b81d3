"""The commands `tocsin cell`: list the cells, make the database of a further one, and move companies."""

import contextlib
from typing import Annotated

import typer

from tocsin.cli.running import load_settings, run_command
from tocsin.cli.terminal import say
from tocsin.errors import Refusal
from tocsin.ids import MAX_ID

app = typer.Typer(no_args_is_help=True, help="The cells: databases for a group of companies each.")


@app.command("list")
def list_() -> None:
    """Print the cells, whether each can be used, and how many companies and users it has."""
    settings = load_settings()

    async def run() -> None:
        from tocsin.cells import cells_of, state_of

        cells = cells_of(settings)
        if cells is None:
            raise Refusal("TOCSIN_CELLS_FILE is not set: there is one cell, the database of the service.")
        for cell in cells:
            listed = ", ".join(
                str(each.start) if len(each) == 1 else f"{each.start}-{each.stop - 1}" for each in cell.entry.companies
            )
            whom = "all other companies" if cell.is_default else f"companies {listed}" if listed else "no company"
            say(f"{cell.name}: {await state_of(cell.settings(settings))}; for {whom}")

    run_command(run())


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the cell.")],
    url: Annotated[str, typer.Option(help="The url of its database. Default: TOCSIN_DATABASE_URL.")] = "",
    schema: Annotated[str, typer.Option(help="The schema of its tables.")] = "tocsin",
    company: Annotated[
        list[str] | None, typer.Option(help="An id of a company, or a range such as 100-199. Can be repeated.")
    ] = None,
) -> None:
    """Check and migrate the database of a further cell, and print its table for TOCSIN_CELLS_FILE."""
    from tocsin.cells import text_of, with_cell
    from tocsin.store import store

    settings = load_settings()
    companies = [int(each) if each.isdecimal() and each.isascii() else each for each in company or ()]
    given = {"url": url, "schema": schema, "companies": companies}
    table = {key: value for key, value in given.items() if value}
    cell = with_cell(settings, name, table)

    async def run() -> None:
        async with store(cell.settings(settings), alone=False, briefly=True, quiet=True):
            pass
        say(text_of(name, table), lines=True)

    run_command(run())


@app.command()
def move(
    company: Annotated[int, typer.Argument(metavar="COMPANY", min=1, max=MAX_ID, help="The id of the company.")],
    to: Annotated[str, typer.Option(metavar="CELL", help="The cell that it moves to.")],
) -> None:
    """Move a company to another cell, while it is in use. Repeat it to continue a move that was interrupted.

    With its own cell, give such a move up.
    """
    from tocsin import moving, whereabouts
    from tocsin.cells import cells_of
    from tocsin.store import pool, store

    settings = load_settings()
    cells = cells_of(settings)
    if cells is None:
        raise Refusal("TOCSIN_CELLS_FILE is not set: there is one cell, the database of the service.")
    cells.named(to)

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            databases = {}
            for cell in cells:
                url = await stack.enter_async_context(
                    store(cell.settings(settings), alone=False, briefly=True, quiet=True)
                )
                databases[cell.name] = await stack.enter_async_context(pool(url, moving.CONNECTIONS, moving.PATIENCE))
            said = {name: await whereabouts.whereabouts(database) for name, database in databases.items()}
            origin = whereabouts.origin_of(company, to, said, cells.cell_of(company).name)
            other = said[to][company].other if origin == to else origin
            if other not in databases:
                raise Refusal(
                    f"Company {company} is in cell {other}, or is being copied there, and TOCSIN_CELLS_FILE does not"
                    " name that cell. Add it again, then repeat the command."
                )
            if company not in said[origin] and not await whereabouts.has_company(databases[origin], company):
                raise Refusal(
                    f"Company {company} has no users and no teams in cell {origin}. Name the cell of a new company in"
                    " TOCSIN_CELLS_FILE."
                )
            if origin == to:
                await moving.give_up(databases[to], databases[other], company, to, other)
                say(f"The move to cell {other} is given up. Company {company} stays in cell {to}.")
                return
            done = await moving.move(databases[origin], databases[to], company, origin, to, say)
        if done.closed:
            say(f"Compared {done.compared.get('inbox', 0):,} notifications; closed for {done.closed:.1f} s.")

    run_command(run())
