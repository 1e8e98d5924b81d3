"""The file of cells, and the settings of each."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.service import settings_for
from tests.support.waiting import until
from tocsin import cell_parts
from tocsin.auth.from_settings import secrets_of
from tocsin.cells import Cells, cells_of, every_cell, of_cell, text_of, with_cell
from tocsin.errors import Refusal
from tocsin.push.apps import plan
from tocsin.push.channels.web_push import WebPush
from tocsin.settings import Settings

URL = "postgresql://tocsin:secret@db-1.example.com/tocsin"
WHOLE = f"""
[main]
default = true

[north]
url = "{URL}"
schema = "tocsin_north"
companies = [17, "100-199"]

[south]
url = "postgresql://db-2.example.com/tocsin"
replica_url = "postgresql://db-3.example.com/tocsin"
companies = [18]
"""


def settings_of(folder: Path, text: str, **more: object) -> Settings:
    file = folder / "cells.toml"
    file.write_text(text, "utf-8")
    return settings_for(cells_file=file, **{"database_url": URL, **more})


def cells_in(folder: Path, text: str, **more: object) -> Cells:
    found = cells_of(settings_of(folder, text, **more))
    assert found is not None
    return found


def refusal(folder: Path, text: str, **more: object) -> str:
    with pytest.raises(Refusal) as got:
        cells_in(folder, text, **more)
    return str(got.value)


def test_without_a_file_there_are_no_cells() -> None:
    settings = settings_for(database_url=URL)
    assert cells_of(settings) is None
    assert of_cell(settings, None) is settings
    assert of_cell(settings, "main") is settings
    assert every_cell(settings) == [settings]
    with pytest.raises(Refusal, match="There is no cell north: TOCSIN_CELLS_FILE is not set"):
        of_cell(settings, "north")


def test_company_is_in_the_cell_that_names_it_or_in_the_default_cell(tmp_path: Path) -> None:
    cells = cells_in(tmp_path, WHOLE)
    companies = (1, 17, 18, 99, 100, 199, 200, 2**31 - 1)
    found = [cells.cell_of(company).name for company in companies]
    assert found == ["main", "north", "south", "main", "north", "north", "main", "main"]


def test_settings_of_a_cell_name_its_database_and_schema_alone(tmp_path: Path) -> None:
    main, north, south = every_cell(settings_of(tmp_path, WHOLE, replica_url="postgresql://db-4.example.com/tocsin"))
    assert main.own_database_url == URL
    assert main.replica_url is not None
    assert north.own_database_url == f"{URL}?tocsin.schema=tocsin_north"
    assert north.replica_url is None
    assert south.replica_url is not None
    assert south.own_database_url == "postgresql://db-2.example.com/tocsin"
    assert main.cells_file is north.cells_file is south.cells_file is None
    assert "tocsin:secret" not in str(north)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has 0 cells"),
        ("[main]\n[main]\n", "is not TOML"),
        ("[main]\n", "no cell is the default"),
        ("[a]\ndefault = true\n[b]\ndefault = true\nschema = 'b'\n", "a and b are the default"),
        ("[main]\ndefault = 1\n", "[main] default: "),
        ("[main]\ndefault = true\ncolour = 1\n", "[main] colour: "),
        ("[Main]\ndefault = true\n", "[Main] is not a name"),
        ("[main]\ndefault = true\n[b]\ncompanies = [1]\n", "[main] and [b] are the same schema of the same database"),
        ("[main]\ndefault = true\n[b]\nschema = 'pg_b'\n", "[b] schema: write up to 40 of a-z"),
        ("[main]\ndefault = true\n[b]\nschema = 'public'\n", "[b] schema: write up to 40 of a-z"),
        ("[main]\ndefault = true\n[b]\nurl = 'mysql://h/d'\n", "[b] url: write it like postgresql://"),
        ("[main]\ndefault = true\n[b]\nschema = 'b'\ncompanies = [0]\n", "[b] companies.0: write the id of a company"),
        ("[main]\ndefault = true\n[b]\nschema = 'b'\ncompanies = ['9-1']\n", "[b] companies.0: write the id"),
        ("[main]\ndefault = true\n[b]\nschema = 'b'\ncompanies = ['1-2147483648']\n", "[b] companies.0: write"),
        ("[main]\ndefault = true\ncompanies = ['5-9']\n[b]\nschema = 'b'\ncompanies = [9]\n", "both have company 9"),
        ("[main]\ndefault = true\ncompanies = [7, 7]\n", "[main] and [main] both have company 7"),
    ],
)
def test_error_in_the_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)


def test_all_errors_are_named_at_once_and_no_password(tmp_path: Path) -> None:
    said = refusal(tmp_path, "[a]\nurl = 'mysql://u:secret@h/d'\n[b]\nschema = 'B'\n")
    assert "[a] url" in said
    assert "[b] schema" in said
    assert "secret" not in said


def test_embedded_database_has_the_default_cell_alone(tmp_path: Path) -> None:
    said = refusal(tmp_path, "[main]\ndefault = true\n[b]\nschema = 'b'\n", database_url=None)
    assert "[b] needs a url: the embedded PostgreSQL has the default cell alone" in said
    assert "[main] needs a url" in refusal(tmp_path, "[main]\ndefault = true\nschema = 'b'\n", database_url=None)


def test_unknown_cell_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="There is no cell west: use main, north, south"):
        of_cell(settings_of(tmp_path, WHOLE), "west")


def test_added_cell_must_fit_the_others(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, WHOLE)
    assert with_cell(settings, "west", {"schema": "w", "companies": [19]}).entry.companies == (range(19, 20),)
    with pytest.raises(Refusal, match="both have company 17"):
        with_cell(settings, "west", {"schema": "w", "companies": [17]})
    with pytest.raises(Refusal, match="There is a cell north already"):
        with_cell(settings, "north", {"schema": "w"})
    assert with_cell(settings_for(database_url=URL), "west", {"schema": "w"}).name == "west"


def test_printed_table_is_one_that_the_file_accepts(tmp_path: Path) -> None:
    table = {"url": "postgresql://h/d", "schema": "tocsin_west", "companies": [20, "30-39"]}
    cells = cells_in(tmp_path, f"[main]\ndefault = true\n\n{text_of('west', table)}\n")
    assert [cells.cell_of(company).name for company in (20, 35, 40)] == ["west", "west", "main"]


async def test_cell_that_cannot_be_opened_is_logged_more_and_more_rarely(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cell_parts, "REOPEN_INTERVAL", 0.05)
    attempts = list[int]()

    async def use() -> None:
        attempts.append(1)
        raise Refusal("The password is wrong." if len(attempts) > 3 else "The database is away.")

    failure, north = "cell stays closed in this test", cells_in(tmp_path, WHOLE).named("north")
    with capture_logs() as lines:
        trying = asyncio.create_task(cell_parts._again_and_again(use, failure, north))  # noqa: SLF001
        await until(lambda: len(attempts) > 40)
        trying.cancel()
    reasons = [line["reason"] for line in lines if (line["event"], line.get("cell")) == (failure, "north")]
    assert reasons == ["The database is away.", *["The password is wrong."] * (len(reasons) - 1)]
    assert 2 <= len(reasons) < len(attempts) / 2


def test_cells_beside_the_embedded_one_have_its_keys(tmp_path: Path) -> None:
    (tmp_path / "data/postgres").mkdir(parents=True)
    more = {"data_dir": tmp_path / "data", "jwt_secret": ()}
    embedded = every_cell(settings_of(tmp_path, WHOLE, database_url=None, **more))
    lanes = [[each for each in plan(cell) if each.provider is WebPush] for cell in embedded]
    assert [len(each) for each in lanes] == [1, 1, 1]
    assert len({each.configuration for (each,) in lanes}) == 1
    assert len({*map(str, map(secrets_of, embedded))}) == 1
    for cell in every_cell(settings_of(tmp_path, WHOLE, **more)):
        assert plan(cell) == []
        with pytest.raises(Refusal, match="With a database of your own"):
            secrets_of(cell)
