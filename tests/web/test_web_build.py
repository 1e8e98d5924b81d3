"""The scripts that browsers load are built from the sources in `web` and checked in: these two never differ."""

from pathlib import Path

import pytest

from tests.api.test_typescript_client import installed, run

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "src/tocsin/web"


@pytest.fixture(scope="module")
async def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, with the tools of their lock file."""
    return await installed(ROOT / "web", tmp_path_factory.mktemp("build") / "web")


@pytest.mark.slow
async def test_a_build_gives_the_files_that_are_checked_in(sources: Path) -> None:
    """Where this fails: `make web`."""
    assert await run(sources, "node", "build.mjs", "out") == (0, "")
    built = {path.name for path in (sources / "out").iterdir()}
    for name in built:
        if not name.endswith(".br"):
            assert (sources / "out" / name).read_bytes() == (BUILT / name).read_bytes(), name
    checked_in = {path.name for path in BUILT.iterdir() if path.suffix in {".js", ".map", ".br"}}
    assert built == checked_in


@pytest.mark.slow
async def test_what_is_checked_in_compressed_is_the_file_beside_it(sources: Path) -> None:
    """Two releases of brotli may compress in different ways, so the bytes are not compared."""
    script = """
        const { readFileSync, readdirSync } = await import("node:fs");
        const { brotliDecompressSync } = await import("node:zlib");
        const [folder] = process.argv.slice(1);
        const names = readdirSync(folder).filter((name) => name.endsWith(".br"));
        const read = (name) => readFileSync(`${folder}/${name}`);
        const differs = (name) => !brotliDecompressSync(read(name)).equals(read(name.slice(0, -3)));
        console.log(names.length, names.filter(differs));
    """
    compressed = len(list(BUILT.glob("*.br")))
    assert compressed
    status, told = await run(sources, "node", "--input-type=module", "-e", script, str(BUILT))
    assert (status, told) == (0, f"{compressed} []\n")
