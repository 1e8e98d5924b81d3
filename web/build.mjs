// Builds what browsers load from the sources beside it, into src/tocsin/web or the folder that is named: `make web`.

import { mkdir, readFile, readdir, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants } from "node:zlib";
import { gzipAsync } from "@gfx/zopfli";
import { build } from "esbuild";
import { minify } from "terser";
import { styles } from "./styles.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const out = process.argv[2] ?? join(here, "../src/tocsin/web");

const scripts = {
  inbox: "inbox/index.js",
  "inbox-worker": "worker/inbox-worker.js",
  console: "console/console.js",
  demo: "demo/demo.js",
};

// esbuild bundles and minifies; terser finds another 2 % of what a page pays for the inbox (unsafe_arrows: no function here has a `this` of its own).
const { outputFiles } = await build({
  absWorkingDir: here,
  entryPoints: scripts,
  outdir: "built", // never written: it keeps the paths of source maps independent of the repository's location
  write: false,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  sourcemap: true,
  legalComments: "none",
  plugins: [styles],
  logLevel: "warning",
});

await mkdir(out, { recursive: true });
const built = new Map(outputFiles.map(({ path, text }) => [basename(path), text]));
for (const name of Object.keys(scripts)) {
  const sourceMap = { content: built.get(`${name}.js.map`), filename: `${name}.js`, url: `${name}.js.map`, includeSources: true };
  const { code, map } = await minify({ [`${name}.js`]: built.get(`${name}.js`) }, { module: true, ecma: 2022, compress: { passes: 3, keep_fargs: false, sequences: false, unsafe_arrows: true }, format: { ecma: 2022 }, sourceMap });
  await deliver(`${name}.js`, Buffer.from(code), true);
  await deliver(`${name}.js.map`, Buffer.from(String(map)), false);
}
for (const name of await readdir(join(here, "inbox/words"))) {
  if (!name.endsWith(".json")) continue;
  const words = JSON.parse(await readFile(join(here, "inbox/words", name), "utf-8"));
  await deliver(`inbox-words-${name}`, Buffer.from(JSON.stringify(words)), true);
}

await deliver("inbox.d.ts", await readFile(join(here, "types/inbox.d.ts")), false);

/** Write a file, and beside it the same compressed: better than Python can, and once. */
async function deliver(name, content, compress) {
  await writeFile(join(out, name), content);
  if (!compress) return;
  const params = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: content.length };
  await writeFile(join(out, `${name}.br`), brotliCompressSync(content, { params }));
  await writeFile(join(out, `${name}.gz`), await gzipAsync(content, { numiterations: 50 }));
}
