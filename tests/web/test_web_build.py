"""The checked-in scripts equal a build of the sources in `web`."""

import shutil
from pathlib import Path

import pytest

from tests.support.programs import run

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "src/tocsin/web"


@pytest.mark.processes
async def test_web_build_matches_the_checked_in_files(sources: Path) -> None:
    """If this fails, run `make web`. Brotli files are not compared: its releases may compress differently."""
    assert await run(sources, "node", "build.mjs", "out") == (0, "")
    built = {path.name for path in (sources / "out").iterdir()}
    for name in built:
        if not name.endswith(".br"):
            assert (sources / "out" / name).read_bytes() == (BUILT / name).read_bytes(), name
    checked_in = {path.name for path in BUILT.iterdir() if path.suffix in {".js", ".json", ".map", ".ts", ".br", ".gz"}}
    assert built == checked_in - {"docs.js"}, "which has no source in web"


@pytest.mark.processes
async def test_web_sources_type_check_and_match_their_declarations(sources: Path) -> None:
    """`tsc --checkJs`; `types/check.ts` compares the declarations for pages with the sources."""
    assert await run(sources, "node_modules/.bin/tsc", "--project", ".") == (0, "")


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node here")
async def test_compressed_web_files_match_their_sources() -> None:
    script = """
        const { readFileSync, readdirSync } = await import("node:fs");
        const { brotliDecompressSync, gunzipSync } = await import("node:zlib");
        const unpack = { br: brotliDecompressSync, gz: gunzipSync };
        const names = readdirSync(".").filter((name) => /\\.(br|gz)$/.test(name));
        const differs = (name) => !unpack[name.slice(-2)](readFileSync(name)).equals(readFileSync(name.slice(0, -3)));
        console.log(names.length, names.filter(differs));
    """
    compressed = [path for path in BUILT.iterdir() if path.suffix in {".br", ".gz"}]
    assert compressed
    status, told = await run(BUILT, "node", "--input-type=module", "-e", script)
    assert (status, told) == (0, f"{len(compressed)} []\n")
