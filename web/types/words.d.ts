import type { Words } from "../inbox.js";

declare const words: Words;
export default words;
