/** The types of `<tocsin-inbox>`; see docs/web-inbox.md. */

/** A notification as `GET /notifications` has it. Pass over types and fields that you don't know. */
export interface Notification {
  id: string;
  type: string;
  data: Record<string, unknown>;
  message: string;
  message_formatted: string;
  read_at: string | null;
  created_at: string;
  [field: string]: unknown;
}

export interface OpenDetail {
  notification: Notification;
  /** Where it leads, if anywhere. */
  link: string | null;
}

export interface CountDetail {
  unread: number;
}

export interface ErrorDetail {
  /** The HTTP status; 0: the service was not reached. */
  status: number;
  code: string;
  message: string;
  error: unknown;
}

/** What the element tells the page. `tocsin-open` can be cancelled: then the page goes there itself. */
export interface TocsinInboxEventMap {
  "tocsin-open": CustomEvent<OpenDetail>;
  "tocsin-count": CustomEvent<CountDetail>;
  "tocsin-error": CustomEvent<ErrorDetail>;
}

/** What the element takes, for the templates of frameworks. */
export type TocsinInboxProps = Partial<
  Pick<TocsinInbox, "src" | "token" | "tokenProvider" | "mode" | "theme" | "lang" | "worker">
>;

export class TocsinInbox extends HTMLElement {
  /** Where the service is: `https://notify.example.com`. */
  src: string | null;
  /** A user's token. */
  token: string | null;
  /** Called for a token when there is none, when the last was refused, and shortly before it expires. */
  tokenProvider: (() => string | Promise<string>) | null;
  mode: "bell" | "page";
  theme: "auto" | "light" | "dark" | null;
  /** The page's own service worker, for pushes to this browser. */
  worker: string | null;
  /** Whether the bell's panel is open. */
  open: boolean;
  /** How many are unread; null until it is known. */
  readonly unread: number | null;
  /** Ask for the list again. */
  refresh(): Promise<void>;
  addEventListener<K extends keyof TocsinInboxEventMap>(
    type: K,
    listener: (this: TocsinInbox, event: TocsinInboxEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

/** Why something was not done. */
export class Refusal extends Error {
  status: number;
  code: string;
  /** Seconds to wait, where the service says so. */
  after: number;
}

/** Reads server-sent events, however their text is cut up. */
export class EventParser {
  push(text: string): Iterable<{ type: string; data: unknown; id: string | null }>;
}

declare global {
  interface HTMLElementTagNameMap {
    "tocsin-inbox": TocsinInbox;
  }
}
