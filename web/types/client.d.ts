import type { Notification } from "./inbox.js";

export type { Notification };

/** What there is to show of an inbox. It never changes: after each change there is another one. */
export interface InboxSnapshot {
  /** The newest first. */
  readonly notifications: readonly Notification[];
  /** How many are unread in the whole inbox; null until it is known. */
  readonly unread: number | null;
  readonly connection: "connecting" | "live" | "polling" | "reconnecting" | "offline";
  readonly loading: boolean;
  /** Why there is no list. */
  readonly error: Refusal | null;
  /** Whether `loadMore` has anything to load. */
  readonly hasMore: boolean;
}

export interface InboxOptions {
  /** Where the service is: `https://notify.example.com`. */
  src: string;
  /** A user's token; or give `tokenProvider`. */
  token?: string | null;
  /** Called for a token when there is none, when the last was refused, and shortly before it expires. */
  tokenProvider?: (() => string | null | Promise<string | null>) | null;
  /** Something failed: `status` 0 says that the service was not reached, 401 that the user is signed out. */
  onError?: ((problem: Refusal) => void) | null;
  /** New notifications have come. */
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
  /** Load the list and go live. What was stopped can be started again. */
  start(): void;
  /** End the stream. What was shown stays in the snapshot. */
  stop(): void;
  /** Call back after each change; returns what ends that. */
  subscribe(listener: () => void): () => void;
  readonly snapshot: InboxSnapshot;
  /** Go on with another token of the same user. */
  setToken(token: string): void;
  refresh(): Promise<void>;
  loadMore(): Promise<void>;
  markRead(id: string): Promise<void>;
  markUnread(id: string): Promise<void>;
  /** Mark as read all that is in the list, and nothing that came since. */
  markAllRead(): void;
  remove(id: string): void;
  /** Where a notification leads, if anywhere. */
  linkOf(id: string): Promise<string | null>;
  kinds(): Promise<Kind[]>;
  preferences(): Promise<Preferences>;
  /** Change some of them; returns all as they are then. */
  updatePreferences(change: Partial<Pick<Preferences, "kinds" | "quiet_hours" | "time_zone" | "paused_until">>): Promise<Preferences>;
}

/** Why something was not done. */
export class Refusal extends Error {
  /** The HTTP status; 0: the service was not reached. */
  status: number;
  code: string;
  /** Seconds to wait, where the service says so. */
  after: number;
}
