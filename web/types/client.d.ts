import type { Notification } from "./inbox.js";

export type { Notification };

/** The state of an inbox. It is immutable: each change makes a new one. */
export interface InboxSnapshot {
  /** Newest first. */
  readonly notifications: readonly Notification[];
  /** The number of unread notifications in the whole inbox; null until it is known. */
  readonly unread: number | null;
  readonly connection: "connecting" | "live" | "polling" | "reconnecting" | "offline" | "signedOut";
  readonly loading: boolean;
  /** The error if the list could not be loaded. */
  readonly error: Refusal | null;
  /** Whether there is a next page for `loadMore`. */
  readonly hasMore: boolean;
}

export interface InboxOptions {
  /** The URL of the service: `https://notify.example.com`. */
  src: string;
  /** A user's token; or give `tokenProvider`. */
  token?: string | null;
  /** Returns a token; called at the start, after a refused token, and shortly before one expires. */
  tokenProvider?: (() => string | null | Promise<string | null>) | null;
  /** Something failed: `status` 0 means that the service was not reached, 401 that the user is signed out. */
  onError?: ((problem: Refusal) => void) | null;
  /** New notifications were received. */
  onArrive?: ((count: number) => void) | null;
}

/** The preferences of a user, as `GET /notifications/preferences` has them. */
export interface Preferences {
  kinds: Record<string, Record<string, boolean>>;
  quiet_hours: { days?: string[]; from: string; to: string }[];
  time_zone: string;
  paused_until: string | null;
  [field: string]: unknown;
}

/** A kind of notification, as `GET /notifications/kinds` has it. */
export interface Kind {
  name: string;
  label: string;
  group: string;
  group_label: string;
  channels: string[];
  [field: string]: unknown;
}

/** An inbox without any rendering. All tabs of a user share one stream. */
export class InboxClient {
  constructor(options: InboxOptions);
  /** Load the list and open the stream. A stopped inbox can be started again. */
  start(): void;
  /** Close the stream. The snapshot keeps its content. */
  stop(): void;
  /** Subscribe to changes; returns a function that unsubscribes. */
  subscribe(listener: () => void): () => void;
  readonly snapshot: InboxSnapshot;
  /** Continue with another token of the same user. */
  setToken(token: string): void;
  refresh(): Promise<void>;
  loadMore(): Promise<void>;
  markRead(id: string): Promise<void>;
  markUnread(id: string): Promise<void>;
  /** Mark the notifications of the list as read, but no newer ones. */
  markAllRead(): void;
  remove(id: string): void;
  /** Return the link of a notification, or null. */
  linkOf(id: string): Promise<string | null>;
  kinds(): Promise<Kind[]>;
  preferences(): Promise<Preferences>;
  /** Change some of the preferences; returns all of them after the change. */
  updatePreferences(change: Partial<Pick<Preferences, "kinds" | "quiet_hours" | "time_zone" | "paused_until">>): Promise<Preferences>;
}

/** A failed call. */
export class Refusal extends Error {
  /** The HTTP status; 0: the service was not reached. */
  status: number;
  code: string;
  /** Seconds to wait before a retry, if the service sent `Retry-After`. */
  after: number;
}
