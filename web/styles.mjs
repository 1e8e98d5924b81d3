import { readFile } from "node:fs/promises";
import { transform } from "esbuild";

/** An esbuild plugin: an imported style sheet becomes a string, minified like the code. */
export const styles = {
  name: "styles",
  setup({ onLoad }) {
    onLoad({ filter: /\.css$/ }, async ({ path }) => {
      const { code } = await transform(await readFile(path, "utf-8"), { loader: "css", minify: true });
      return { contents: code.trim().replaceAll(", ", ","), loader: "text" };
    });
  },
};
