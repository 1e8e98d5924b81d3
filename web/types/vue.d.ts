import type { ShallowRef } from "vue";
import type { InboxClient, InboxOptions, InboxSnapshot } from "./client.js";

export type { InboxClient, InboxOptions, InboxSnapshot, Notification } from "./client.js";

/** An inbox that is live while the calling component is mounted. */
export function useInbox(options: InboxOptions): { inbox: Readonly<ShallowRef<InboxSnapshot>>; client: InboxClient };
