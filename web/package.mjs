// Builds the npm package into `dist`; `npm pack` runs this first.

import { execFileSync } from "node:child_process";
import { cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { styles } from "./styles.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const dist = join(here, "dist");

await rm(dist, { recursive: true, force: true });
await build({
  absWorkingDir: here,
  entryPoints: {
    index: "inbox/index.js", client: "headless/client.js", react: "headless/react.js", vue: "headless/vue.js",
  },
  outdir: dist,
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  sourcemap: true,
  external: ["react", "vue"],
  plugins: [styles],
  logLevel: "warning",
});

await mkdir(join(dist, "words"));
for (const name of await readdir(join(here, "inbox/words"))) {
  if (!name.endsWith(".json")) continue;
  const words = await readFile(join(here, "inbox/words", name), "utf-8");
  const language = basename(name, ".json");
  await writeFile(join(dist, `words/${language}.js`), `export default ${words.trim()};\n`);
  await cp(join(here, "types/words.d.ts"), join(dist, `words/${language}.d.ts`));
}
await cp(join(here, "types/inbox.d.ts"), join(dist, "index.d.ts"));
for (const name of ["client", "react", "vue"]) {
  const types = await readFile(join(here, `types/${name}.d.ts`), "utf-8");
  await writeFile(join(dist, `${name}.d.ts`), types.replaceAll("./inbox.js", "./index.js"));
}

execFileSync(process.execPath, [
  join(here, "node_modules/@custom-elements-manifest/analyzer/cem.js"), "analyze", "--globs", "inbox/element.js", "--outdir", "dist", "--quiet",
], { cwd: here });
const manifest = JSON.parse(await readFile(join(dist, "custom-elements.json"), "utf-8"));
await writeFile(join(dist, "custom-elements.json"), JSON.stringify(published(manifest), null, 2));

/** Return the manifest with only the public parts, and with the paths of the package. */
function published({ modules: [module], ...more }) {
  const [element] = module.declarations.filter(({ customElement }) => customElement);
  const isPublic = ({ privacy, name, description }) => privacy !== "private" && description && !/Callback$|^handleEvent$/.test(name);
  const members = element.members.filter(isPublic);
  const events = element.events.filter(({ name }) => name.startsWith("tocsin-")); // not the name of a variable
  const path = "dist/index.js";
  return {
    ...more,
    modules: [{
      kind: "javascript-module",
      path,
      declarations: [{ ...element, members, events }],
      exports: [
        { kind: "js", name: "TocsinInbox", declaration: { name: "TocsinInbox", module: path } },
        { kind: "custom-element-definition", name: "tocsin-inbox", declaration: { name: "TocsinInbox", module: path } },
      ],
    }],
  };
}
