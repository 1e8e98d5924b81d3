import type { ReactElement, ReactNode } from "react";
import type { InboxClient, InboxOptions, InboxSnapshot } from "./client.js";

export type { InboxClient, InboxOptions, InboxSnapshot, Notification } from "./client.js";

/** Provides an inbox to its children and keeps it live while mounted. Use a `key` per user. */
export function InboxProvider(props: InboxOptions & { children?: ReactNode }): ReactElement;

/** Return the state of the inbox, and the client that changes it. Requires an `InboxProvider` above. */
export function useInbox(): InboxSnapshot & { client: InboxClient };
