/** The inbox for React: a provider that keeps one client, and a hook that says what it has. */

import { createContext, createElement, useContext, useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { InboxClient } from "./client.js";

const Context = createContext(null);

/** Keep an inbox for what is inside: live while it is mounted, another one for another service. */
export function InboxProvider({ src, token = null, tokenProvider = null, onError = null, onArrive = null, children }) {
  const latest = useRef(null);
  useEffect(() => { latest.current = { tokenProvider, onError, onArrive }; });
  const provides = Boolean(tokenProvider);
  const client = useMemo(() => new InboxClient({
    src,
    token,
    tokenProvider: provides ? () => latest.current.tokenProvider() : null,
    onError: (problem) => latest.current.onError?.(problem),
    onArrive: (count) => latest.current.onArrive?.(count),
  }), [src, provides]); // a new token is handed over below
  useEffect(() => { if (token) client.setToken(token); }, [client, token]);
  useEffect(() => {
    client.start();
    return () => client.stop();
  }, [client]);
  return createElement(Context.Provider, { value: client }, children);
}

/** What the inbox has, and what can be done with it: `{ notifications, unread, ..., client }`. */
export function useInbox() {
  const client = useContext(Context);
  if (!client) throw new Error("useInbox() needs an <InboxProvider> around it.");
  const snapshot = useSyncExternalStore(
    useMemo(() => (listener) => client.subscribe(listener), [client]), () => client.snapshot, () => client.snapshot,
  );
  return useMemo(() => ({ ...snapshot, client }), [snapshot, client]);
}
