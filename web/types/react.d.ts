import type { ReactElement, ReactNode } from "react";
import type { InboxClient, InboxOptions, InboxSnapshot } from "./client.js";

export type { InboxClient, InboxOptions, InboxSnapshot, Notification } from "./client.js";

/** Keep an inbox for what is inside: live while it is mounted. Give each user a `key`. */
export function InboxProvider(props: InboxOptions & { children?: ReactNode }): ReactElement;

/** What the inbox has, and the client to change it with. Needs an `InboxProvider` around it. */
export function useInbox(): InboxSnapshot & { client: InboxClient };
