// Bundles both pages into `made`, as for production: what Vite does, in a few lines. JSX goes through Babel, which
// takes less than esbuild does: an attribute with a colon is an error.

import { readFile } from "node:fs/promises";
import { transformAsync } from "@babel/core";
import { build } from "esbuild";
import { compileScript, parse } from "vue/compiler-sfc";

const isCustomElement = (tag) => tag === "tocsin-inbox";

const vue = {
  name: "vue",
  setup({ onLoad }) {
    onLoad({ filter: /\.vue$/ }, async ({ path }) => {
      const { descriptor, errors } = parse(await readFile(path, "utf-8"), { filename: path });
      if (errors.length) throw errors[0];
      const templateOptions = { compilerOptions: { isCustomElement } };
      const { content } = compileScript(descriptor, { id: path, inlineTemplate: true, templateOptions });
      return { contents: content, loader: "ts" };
    });
  },
};

const react = {
  name: "react",
  setup({ onLoad }) {
    onLoad({ filter: /\.tsx$/ }, async ({ path }) => {
      const presets = ["@babel/preset-typescript", ["@babel/preset-react", { runtime: "automatic" }]];
      const { code } = await transformAsync(await readFile(path, "utf-8"), { filename: path, presets, configFile: false });
      return { contents: code, loader: "js" };
    });
  },
};

await build({
  entryPoints: ["react.tsx", "vue.ts"],
  outdir: "made",
  bundle: true,
  minify: true,
  target: "es2022",
  define: {
    "process.env.NODE_ENV": '"production"',
    __VUE_OPTIONS_API__: "false",
    __VUE_PROD_DEVTOOLS__: "false",
    __VUE_PROD_HYDRATION_MISMATCH_DETAILS__: "false",
  },
  plugins: [react, vue],
  logLevel: "warning",
});
