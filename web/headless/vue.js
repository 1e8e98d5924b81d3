/** The inbox for Vue: a composable that is live while the calling component is mounted. */

import { getCurrentScope, onMounted, onScopeDispose, shallowReadonly, shallowRef } from "vue";
import { InboxClient } from "./client.js";

/** Return `{ inbox, client }`: the state as a ref, and the client that changes it. */
export function useInbox(options) {
  const client = new InboxClient(options);
  const inbox = shallowRef(client.snapshot);
  client.subscribe(() => { inbox.value = client.snapshot; });
  onMounted(() => client.start()); // not on a server
  if (getCurrentScope()) onScopeDispose(() => client.stop());
  return { inbox: shallowReadonly(inbox), client };
}
