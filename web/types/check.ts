// Compiles only if the declarations in `inbox.d.ts` and `client.d.ts` match the sources.

import * as client from "../headless/client.js";
import * as inbox from "../inbox/index.js";
import type en from "../inbox/words/en.js";
import type * as declaredClient from "./client.js";
import type * as declared from "./inbox.js";

type Same<One, Other> = [Exclude<One, Other>, Exclude<Other, One>] extends [never, never] ? true : [Exclude<One, Other>, Exclude<Other, One>];
type Callbacks = "connectedCallback" | "disconnectedCallback" | "attributeChangedCallback" | "handleEvent";

export const element: new () => Pick<declared.TocsinInbox, Exclude<keyof declared.TocsinInbox, "addEventListener">> = inbox.TocsinInbox;
export const members: Same<Exclude<keyof inbox.TocsinInbox, Callbacks>, keyof declared.TocsinInbox> = true;
export const parser: new () => declared.EventParser = inbox.EventParser;
export const refusal: Same<keyof inbox.Refusal, keyof declared.Refusal> = true;
export const exported: Same<keyof typeof inbox, "TocsinInbox" | "EventParser" | "Refusal"> = true;
export const words: Same<keyof typeof en, keyof declared.Words> = true;

export const made: new (options: declaredClient.InboxOptions) => declaredClient.InboxClient = client.InboxClient;
export const calls: Same<Exclude<keyof client.InboxClient, Callbacks>, keyof declaredClient.InboxClient> = true;
