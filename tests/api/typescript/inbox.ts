// Posts an event, lists the inbox that it came to page by page, marks its newest notification as read, and prints what
// it saw as JSON. `api.d.ts` is generated from the API document.

import createClient from "openapi-fetch";
import type { components, paths, webhooks } from "./api.js";

type Schemas = components["schemas"];
type Query = NonNullable<paths["/notifications"]["get"]["parameters"]["query"]>;
type Push = webhooks["web_push"]["post"]["requestBody"]["content"]["application/json"];

declare const process: { argv: string[] };

const [url, service, user] = process.argv.slice(2) as [string, string, string];
const events = client(service);
const inbox = client(user);

const posted = await post();
const listed = await list({ per_page: 2 });
const newest = await read(listed[0]!.id);
const refused = await inbox.GET("/notifications/{notification_id}", { params: { path: { notification_id: "0" } } });
const { data: readiness } = await inbox.GET("/readyz");

console.log(
  JSON.stringify({
    posted,
    listed: listed.map(({ id, message }) => ({ id, message })),
    newest: { id: newest.id, read: newest.read, case: caseOf(newest) },
    refused: refused.error?.errors.map(({ code }) => code),
    ready: readiness?.status,
  }),
);

function client(token: string) {
  return createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${token}` } });
}

async function post(): Promise<string> {
  const case_ = { id: "65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88", case_number: 6, relations_path_name: "Case type" };
  const event: Schemas["NewEvent"] = {
    type: "note",
    notify: { users: [1] },
    data: { user: 4, case: case_ },
    params: { contact: "Jane Doe", body: "" },
  };
  const { data, error } = await events.POST("/events", { body: event });
  if (error) throw new Error(sayingOf(error));
  const { id } = data;
  await events.GET("/events/{event_id}", { params: { path: { event_id: id }, query: { wait: 10 } } });
  return id;
}

async function list(query: Query): Promise<Schemas["Notification"][]> {
  const { data, error } = await inbox.GET("/notifications", { params: { query } });
  if (error) throw new Error(sayingOf(error));
  const { next } = data.pagination.urls;
  const older = next === null ? [] : await list(Object.fromEntries(new URL(next).searchParams));
  return [...data.data, ...older];
}

async function read(id: string): Promise<Schemas["Notification"]> {
  const params = { path: { notification_id: id } };
  const marked = await inbox.PUT("/notifications/{notification_id}/read", { params });
  if (marked.error) throw new Error(sayingOf(marked.error));
  const { data, error } = await inbox.GET("/notifications/{notification_id}", { params });
  if (error) throw new Error(sayingOf(error));
  return data;
}

function sayingOf({ errors }: Schemas["Errors"]): string {
  return errors.map(({ code, message, field }) => `${code} ${field ?? ""}: ${message}`).join("; ");
}

function caseOf(notification: Schemas["Notification"]): number | null {
  return notification.type === "note" ? (notification as Schemas["NoteNotification"]).data.case.case_number : null;
}

// What the service would refuse does not compile, and what a service worker gets has its types.
// @ts-expect-error: a case has more than an id
export const half: Schemas["NoteData"] = { user: 4, case: { id: "65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88" } };
// @ts-expect-error: there is no such kind
export const unknown: Schemas["NewEvent"] = { type: "nothing", notify: { users: [1] } };
export const titleOf = (push: Push): string => push.title ?? push.notification?.type ?? "";
