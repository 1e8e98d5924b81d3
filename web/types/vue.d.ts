import type { ShallowRef } from "vue";
import type { InboxClient, InboxOptions, InboxSnapshot } from "./client.js";

export type { InboxClient, InboxOptions, InboxSnapshot, Notification } from "./client.js";

/** An inbox that is live as long as the component that calls this. */
export function useInbox(options: InboxOptions): { inbox: Readonly<ShallowRef<InboxSnapshot>>; client: InboxClient };
