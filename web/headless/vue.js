/** The inbox for Vue: a composable that is live as long as the component that calls it. */

import { getCurrentScope, onMounted, onScopeDispose, shallowReadonly, shallowRef } from "vue";
import { InboxClient } from "./client.js";

/** Return `{ inbox, client }`: what the inbox has, as a ref, and what can be done with it. */
export function useInbox(options) {
  const client = new InboxClient(options);
  const inbox = shallowRef(client.snapshot);
  client.subscribe(() => { inbox.value = client.snapshot; });
  onMounted(() => client.start()); // not on a server
  if (getCurrentScope()) onScopeDispose(() => client.stop());
  return { inbox: shallowReadonly(inbox), client };
}
