// Builds what browsers load from the sources beside it, into src/tocsin/web or the folder that is named: `make web`.

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants } from "node:zlib";
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
for (const { path, contents } of outputFiles) {
  const to = join(out, basename(path));
  await writeFile(to, contents);
  if (!path.endsWith(".map")) await writeFile(`${to}.br`, packed(contents));
}

/** Compressed here, since Python has no brotli of its own. */
function packed(contents) {
  const size = { [constants.BROTLI_PARAM_SIZE_HINT]: contents.length };
  return brotliCompressSync(contents, { params: { [constants.BROTLI_PARAM_QUALITY]: 11, ...size } });
}
