/** The inbox for React: a provider with one client, and a hook that returns its state. */

import { createContext, createElement, useContext, useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { InboxClient } from "./client.js";

const Context = createContext(null);

/** Provide an inbox to the children, live while mounted; a new one if the service changes. */
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
  }), [src, provides]); // a new token is set below
  useEffect(() => { if (token) client.setToken(token); }, [client, token]);
  useEffect(() => {
    client.start();
    return () => client.stop();
  }, [client]);
  return createElement(Context.Provider, { value: client }, children);
}

/** Return the state of the inbox and its client: `{ notifications, unread, ..., client }`. */
export function useInbox() {
  const client = useContext(Context);
  if (!client) throw new Error("useInbox() needs an <InboxProvider> around it.");
  const snapshot = useSyncExternalStore(
    useMemo(() => (listener) => client.subscribe(listener), [client]), () => client.snapshot, () => client.snapshot,
  );
  return useMemo(() => ({ ...snapshot, client }), [snapshot, client]);
}
