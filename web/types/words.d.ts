import type { Words } from "../index.js";

declare const words: Words;
export default words;
