// Builds what browsers load from the sources beside it, into src/tocsin/web or the folder that is named: `make web`.

import { mkdir, readFile, readdir, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants } from "node:zlib";
import { gzipAsync } from "@gfx/zopfli";
import { build, transform } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const out = process.argv[2] ?? join(here, "../src/tocsin/web");

/** An imported style sheet is a string, minified like the code. */
const styles = {
  name: "styles",
  setup({ onLoad }) {
    onLoad({ filter: /\.css$/ }, async ({ path }) => {
      const { code } = await transform(await readFile(path, "utf-8"), { loader: "css", minify: true });
      return { contents: code.trim(), loader: "text" };
    });
  },
};

const { outputFiles } = await build({
  absWorkingDir: here,
  entryPoints: {
    inbox: "inbox/index.js",
    "inbox-worker": "worker/inbox-worker.js",
    console: "console/console.js",
    demo: "demo/demo.js",
  },
  outdir: "built", // nothing is written there: the paths of a source map must not depend on where this repository is
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
for (const { path, contents } of outputFiles) await deliver(basename(path), contents, !path.endsWith(".map"));
for (const name of await readdir(join(here, "inbox/words"))) {
  if (!name.endsWith(".json")) continue;
  const words = JSON.parse(await readFile(join(here, "inbox/words", name), "utf-8"));
  await deliver(`inbox-words-${name}`, Buffer.from(JSON.stringify(words)), true);
}

/** Write a file, and beside it the same compressed: better than Python can, and once. */
async function deliver(name, content, compress) {
  await writeFile(join(out, name), content);
  if (!compress) return;
  const params = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: content.length };
  await writeFile(join(out, `${name}.br`), brotliCompressSync(content, { params }));
  await writeFile(join(out, `${name}.gz`), await gzipAsync(content, { numiterations: 50 }));
}
