"""`tocsin cell` and `--cell`: each command opens the database of the cell that it names."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import refusal, run
from tests.support.database import make_database
from tests.support.service import SECRET
from tocsin.db.connections import connect
from tocsin.db.url import in_schema
from tocsin.postgres.supervisor import Embedded

BOTH = "both.toml"
"""The file of the two cells that can be reached."""

HINT = "That is about the default cell: name another one by --cell."


USER: dict[str, Any] = {"user": {"id": 1, "company_id": 17, "first_name": "A", "last_name": "B"}}


def write(file: Path, *lines: dict[str, Any]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
async def database(server: Embedded) -> str:
    return await make_database(server, "of_cells")


@pytest.fixture
def cells(database: str, tmp_path: Path) -> dict[str, str]:
    both = "[main]\ndefault = true\n\n[north]\nschema = 'tocsin_north'\ncompanies = [17, '20-29']\n\n"
    (tmp_path / BOTH).write_text(both)
    (tmp_path / "cells.toml").write_text(f"{both}[away]\nurl = 'postgresql://127.0.0.1:1/x'\ncompanies = [18]\n")
    return {
        "TOCSIN_DATABASE_URL": database,
        "TOCSIN_JWT_SECRET": SECRET,
        "TOCSIN_CELLS_FILE": "cells.toml",
        "TOCSIN_DATA_DIR": str(tmp_path / "data"),
    }


def test_cell_is_added_listed_filled_and_read_alone(cells: dict[str, str], tmp_path: Path) -> None:
    assert run("migrate", cwd=tmp_path, **cells | {"TOCSIN_CELLS_FILE": BOTH}).returncode == 0
    write(tmp_path / "users", USER)
    imported = run("import", "users", "--cell", "north", cwd=tmp_path, **cells | {"TOCSIN_CELLS_FILE": BOTH})
    assert imported.returncode == 0, imported.stderr
    exported = [run("export", *of, cwd=tmp_path, **cells).stdout for of in ((), ("--cell", "north"))]
    assert ['"id":1' in each.replace(" ", "") for each in exported] == [False, True]
    assert f"There is no user 1. {HINT}" in refusal("explain", "--user", "1", cwd=tmp_path, **cells)
    unknown = "65e48afe-7307-4ad3-9fc1-9ec7e6dc0a88"
    assert f"There is no event {unknown}. {HINT}" in refusal("cancel", unknown, cwd=tmp_path, **cells)
    without = f"tocsin: There is no dead letter of event {unknown}."
    assert refusal("replay", unknown, cwd=tmp_path, **cells) == f"{without} {HINT}"
    assert refusal("replay", unknown, "--cell", "main", cwd=tmp_path, **cells) == without
    requeued = "Requeued 0 events and 0 pushes."
    assert run("replay", cwd=tmp_path, **cells).stdout == f"{requeued} {HINT}\n"
    assert "user 1, A B" in run("explain", "--user", "1", "--cell", "north", cwd=tmp_path, **cells).stdout
    main, north, away = run("cell", "list", cwd=tmp_path, **cells).stdout.splitlines()
    assert main == "main: ready, 0 companies, 0 users, 0 workers; for all other companies"
    assert north == "north: ready, 1 companies, 1 users, 0 workers; for companies 17, 20-29"
    assert away.startswith("away: ")
    assert "ready" not in away
    doctor = run("doctor", "--cell", "north", cwd=tmp_path, **cells).stdout
    assert "ok   schema: it has every migration of this release" in doctor, doctor


def test_import_refuses_users_and_teams_of_another_cell(cells: dict[str, str], tmp_path: Path) -> None:
    both = cells | {"TOCSIN_CELLS_FILE": BOTH}
    assert run("migrate", cwd=tmp_path, **both).returncode == 0
    team = {"team": {"id": 1, "company_id": 17, "name": "Sales", "users": [1]}}
    write(tmp_path / "north", USER, team)
    assert run("import", "north", "--cell", "north", cwd=tmp_path, **both).returncode == 0
    other = {"user": {**USER["user"], "id": 2, "company_id": 1}}
    write(tmp_path / "main", other, USER, team)
    assert run("import", "main", cwd=tmp_path, **both).stderr.splitlines() == [
        "tocsin: Nothing was imported from main:",
        "The lines.2.user.id field is a user of another cell.",
        "The lines.3.team.id field is a team of another cell.",
    ]
    write(tmp_path / "main", other)
    assert "The cell away does not say which users and teams it has." in refusal(
        "import", "main", cwd=tmp_path, **cells
    )
    assert run("import", "north", "--cell", "north", cwd=tmp_path, **both).returncode == 0, "its own can be repeated"
    exported = run("export", cwd=tmp_path, **both).stdout
    assert exported == ""


def test_company_that_is_moved_is_listed_and_an_unknown_one_refused(cells: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "cells.toml").write_text("[main]\ndefault = true\n\n[south]\nschema = 'tocsin_south'\n")
    for cell in ("main", "south"):
        assert run("migrate", "--cell", cell, cwd=tmp_path, **cells).returncode == 0
    said = refusal("cell", "move", "99", "--to", "south", cwd=tmp_path, **cells)
    assert "Company 99 has no users and no teams in cell main" in said
    line = {"team": {"id": 40, "company_id": 40, "name": "Sales", "users": []}}
    (tmp_path / "team").write_text(json.dumps(line))
    assert run("import", "team", cwd=tmp_path, **cells).returncode == 0
    for there, back in (("south", "main"), ("main", "south"), ("south", "main")):
        moved = run("cell", "move", "40", "--to", there, cwd=tmp_path, **cells)
        assert moved.returncode == 0, moved.stderr
        listed = dict(line.split(": ", 1) for line in run("cell", "list", cwd=tmp_path, **cells).stdout.splitlines())
        assert f"moved from here: 40 to {there};" in listed[back]
        assert "moved from here" not in listed[there]


async def test_new_cell_is_migrated_and_its_table_printed(cells: dict[str, str], database: str, tmp_path: Path) -> None:
    added = run("cell", "add", "west", "--schema", "tocsin_west", "--company", "30-39", cwd=tmp_path, **cells)
    assert added.returncode == 0, added.stderr
    assert added.stdout == '[west]\nschema = "tocsin_west"\ncompanies = ["30-39"]\n'
    connection = await connect(in_schema(database, "tocsin_west"))
    assert await connection.fetchval("select count(*) from users") == 0
    await connection.close()


def test_cell_that_does_not_fit_is_not_added(cells: dict[str, str], tmp_path: Path) -> None:
    said = refusal("cell", "add", "west", "--schema", "tocsin_west", "--company", "17", cwd=tmp_path, **cells)
    assert "both have company 17" in said
    assert "There is no cell west" in refusal("export", "--cell", "west", cwd=tmp_path, **cells)


def test_without_a_file_no_cells_are_listed(database: str, tmp_path: Path) -> None:
    assert "there is one cell" in refusal("cell", "list", cwd=tmp_path, TOCSIN_DATABASE_URL=database)


def test_schema_needs_a_database_of_its_own(tmp_path: Path) -> None:
    said = refusal("migrate", cwd=tmp_path, TOCSIN_DATABASE_SCHEMA="b", TOCSIN_DATA_DIR=str(tmp_path / "data"))
    assert "A schema is for a database of your own" in said
