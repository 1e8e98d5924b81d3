/** The types of `<tocsin-inbox>`; see docs/guides/web-inbox.md. */

/** A notification as in `GET /notifications`. Ignore unknown types and fields. */
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
  /** The URL of the link, or null. */
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

/** The texts of the element. Missing ones are in the element's language. */
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
  /** The texts of the nine rows of the keyboard help, from the first. */
  keys?: string[];
  pushHere?: string; pushHint?: string; pushDenied?: string; pushFailed?: string;
  pause?: string; pauseHint?: string; pauseHour?: string; pauseTomorrow?: Counted; pausedUntil?: Counted; resume?: string;
  quiet?: string; quietHint?: string; addQuiet?: string; removeQuiet?: string; oneDay?: string; from?: string; to?: string;
  zone?: string; channels?: { push?: string; web_push?: string }; locked?: string;
}

/** The events of the element. If the page cancels `tocsin-open`, it navigates itself. */
export interface TocsinInboxEventMap {
  "tocsin-open": CustomEvent<OpenDetail>;
  "tocsin-count": CustomEvent<CountDetail>;
  "tocsin-error": CustomEvent<ErrorDetail>;
}

/** The attributes and properties of the element, for the templates of frameworks. */
export type TocsinInboxProps = Partial<
  Pick<TocsinInbox, "src" | "token" | "tokenProvider" | "mode" | "theme" | "lang" | "words" | "worker" | "renderItem">
>;

export class TocsinInbox extends HTMLElement {
  /** The URL of the service: `https://notify.example.com`. */
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
  /** Texts of the page, for a language that the element does not have. */
  words: Words | null;
  /**
   * Draws what a row says, instead of picture, text and time: a node, which becomes a child of the element, or null for
   * the usual. Called again when the notification is read, or is unread again.
   */
  renderItem: ((notification: Notification) => HTMLElement | null) | null;
  /** The page's own service worker, for pushes in this browser. */
  worker: string | null;
  /** Whether the panel is open. */
  open: boolean;
  /** The number of unread notifications; null until it is known. */
  readonly unread: number | null;
  /** Reload the list. */
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

/** A failed call. */
export class Refusal extends Error {
  status: number;
  code: string;
  /** Seconds to wait before a retry, if the service sent `Retry-After`. */
  after: number;
}

/** A parser of server-sent events that accepts chunks of any size. */
export class EventParser {
  /** The delay before a reconnect in ms, if the service sent one. */
  readonly retry: number | null;
  push(text: string): Iterable<{ type: string; data: unknown; id: string | null }>;
}

declare global {
  interface HTMLElementTagNameMap {
    "tocsin-inbox": TocsinInbox;
  }
}
