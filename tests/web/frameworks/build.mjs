// Bundles the pages into `made`, as for production: what Vite does, in a few lines. JSX goes through Babel, which
// takes less than esbuild does (an attribute with a colon is an error), and through SWC, which compiles Next.js.

import { execFileSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import linker from "@angular/compiler-cli/linker/babel";
import { transformAsync } from "@babel/core";
import { transform } from "@swc/core";
import { build } from "esbuild";
import { compile } from "svelte/compiler";
import { compileScript, parse } from "vue/compiler-sfc";

const isCustomElement = (tag) => tag === "tocsin-inbox";

/** Compile the files that match before they are bundled. */
const plugin = (name, filter, compiled, loader) => ({
  name,
  setup({ onLoad }) {
    onLoad({ filter }, async ({ path }) => ({ contents: await compiled(path, await readFile(path, "utf-8")), loader }));
  },
});

const vue = plugin("vue", /\.vue$/, (path, source) => {
  const { descriptor, errors } = parse(source, { filename: path });
  if (errors.length) throw errors[0];
  const templateOptions = { compilerOptions: { isCustomElement } };
  return compileScript(descriptor, { id: path, inlineTemplate: true, templateOptions }).content;
}, "ts");

const svelte = plugin("svelte", /\.svelte$/, (path, source) => {
  const { js, warnings } = compile(source, { filename: path, css: "injected" });
  if (warnings.length) throw new Error(warnings[0].message);
  return js.code;
}, "ts");

const byBabel = (filename, source, presets) => transformAsync(source, { filename, presets: ["@babel/preset-typescript", ...presets], configFile: false });

const solid = plugin("solid", /solid\.tsx$/, async (path, source) => (await byBabel(path, source, ["babel-preset-solid"])).code, "js");

const react = plugin("react", /\.tsx$/, async (path, source) => {
  await transform(source, { filename: path, jsc: { parser: { syntax: "typescript", tsx: true } }, swcrc: false });
  return (await byBabel(path, source, [["@babel/preset-react", { runtime: "automatic" }]])).code;
}, "js");

/** The libraries of Angular are finished by the compiler of whoever uses them. */
const angular = plugin("angular", /node_modules\/@angular\/.*\.mjs$/, async (path, source) => {
  const plugins = [[linker, { linkerJitMode: false }]];
  return (await transformAsync(source, { filename: path, plugins, configFile: false, compact: false })).code;
}, "js");

try {
  execFileSync("node_modules/.bin/ngc", ["--project", "tsconfig.angular.json"], { encoding: "utf-8" });
} catch (failed) {
  throw new Error(failed.stdout);
}

const pages = { react: "react.tsx", react_hook: "react_hook.tsx", vue: "vue.ts", vue_composable: "vue_composable.ts", svelte: "svelte.ts", solid: "solid.tsx" };

await build({
  entryPoints: { ...pages, angular: "made/ngc/angular.js" },
  outdir: "made",
  bundle: true,
  minify: true,
  target: "es2022",
  conditions: ["browser"],
  define: {
    "process.env.NODE_ENV": '"production"',
    ngDevMode: "false",
    ngJitMode: "false",
    __VUE_OPTIONS_API__: "false",
    __VUE_PROD_DEVTOOLS__: "false",
    __VUE_PROD_HYDRATION_MISMATCH_DETAILS__: "false",
  },
  plugins: [solid, react, vue, svelte, angular],
  logLevel: "warning",
});
