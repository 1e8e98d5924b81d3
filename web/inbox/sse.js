/** A parser of server-sent events that accepts chunks of any size. */
export class EventParser {
  #rest = "";
  #type = "";
  #data = [];
  #id = null;
  /** The delay before a reconnect in ms, if the service sent one. */
  retry = null;

  *push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        const event = this.#take();
        if (event) yield event;
        continue;
      }
      const at = line.indexOf(":");
      const field = at < 0 ? line : line.slice(0, at);
      const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
      if (field === "event") this.#type = value;
      else if (field === "data") this.#data.push(value);
      else if (field === "id" && !value.includes("\0")) this.#id = value;
      else if (field === "retry" && /^\d{1,6}$/.test(value)) this.retry = Number(value);
    }
  }

  #take() {
    const [type, data] = [this.#type || "message", this.#data.join("\n")];
    const empty = !this.#data.length;
    [this.#type, this.#data] = ["", []];
    try {
      return empty ? null : { type, data: JSON.parse(data), id: this.#id };
    } catch {
      return null; // not JSON
    }
  }
}

