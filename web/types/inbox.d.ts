/** The types of `<tocsin-inbox>`; see docs/guides/web-inbox.md. */

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

/**
 * Text with a number or a time in it: text with {} in its place, such texts by the plural category of the number
 * (`one`, `few`, `other` ...), or a function of it.
 */
type Counted = string | ({ other: string } & Partial<Record<Intl.LDMLPluralRule, string>>) | ((n: number | string) => string);

/** The words of the element. What is left out is said in the element's language. */
export interface Words {
  title?: string; all?: string; unread?: string; show?: string; back?: string; close?: string; readAll?: string;
  preferences?: string; more?: string; loading?: string; retry?: string; undo?: string; remove?: string; markRead?: string;
  markUnread?: string; isUnread?: string; saved?: string; markedRead?: string; markedUnread?: string; allRead?: string;
  restored?: string; kept?: string; sender?: string; unfold?: string; fold?: string;
  unreadCount?: Counted; fresh?: Counted; arrived?: Counted; deleted?: Counted;
  /** Each a heading and a sentence. */
  empty?: { all?: [string, string]; unread?: [string, string] };
  connection?: { offline?: string; reconnecting?: string };
  failed?: { remove?: string; load?: string; save?: string };
  problem?: { signedOut?: string; failed?: string; unreachable?: string };
  help?: string;
  /** What the nine rows of the help say, from the first. */
  keys?: string[];
  pushHere?: string; pushHint?: string; pushDenied?: string; pushFailed?: string;
  pause?: string; pauseHint?: string; pauseHour?: string; pauseTomorrow?: Counted; pausedUntil?: Counted; resume?: string;
  quiet?: string; quietHint?: string; addQuiet?: string; removeQuiet?: string; oneDay?: string; from?: string; to?: string;
  zone?: string; channels?: { push?: string; web_push?: string }; locked?: string;
}

/** What the element tells the page. `tocsin-open` can be cancelled: then the page goes there itself. */
export interface TocsinInboxEventMap {
  "tocsin-open": CustomEvent<OpenDetail>;
  "tocsin-count": CustomEvent<CountDetail>;
  "tocsin-error": CustomEvent<ErrorDetail>;
}

/** What the element takes, for the templates of frameworks. */
export type TocsinInboxProps = Partial<
  Pick<TocsinInbox, "src" | "token" | "tokenProvider" | "mode" | "theme" | "lang" | "words" | "worker" | "renderItem">
>;

export class TocsinInbox extends HTMLElement {
  /** Where the service is: `https://notify.example.com`. */
  src: string | null;
  /** A user's token. */
  token: string | null;
  /**
   * Called for a token when there is none, when the last was refused, and shortly before it expires. What it throws is
   * tried again; null says that the user is signed out.
   */
  tokenProvider: (() => string | null | Promise<string | null>) | null;
  mode: "bell" | "page";
  theme: "auto" | "light" | "dark" | null;
  /** The page's own words, for a language that the element does not have. */
  words: Words | null;
  /**
   * Draws what a row says, instead of picture, text and time: a node, which becomes a child of the element, or null for
   * the usual. Called again when the notification is read, or is unread again.
   */
  renderItem: ((notification: Notification) => HTMLElement | null) | null;
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
  /** How long to wait before asking again, in ms, where the service said so. */
  readonly retry: number | null;
  push(text: string): Iterable<{ type: string; data: unknown; id: string | null }>;
}

declare global {
  interface HTMLElementTagNameMap {
    "tocsin-inbox": TocsinInbox;
  }
}
