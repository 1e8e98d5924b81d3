// Posts a `note` event with all optional fields, lists the inbox that it came to, and reads an error, by a client of
// @hey-api/openapi-ts; prints what it saw as JSON.

import { createClient } from "./client/client";
import { getEvent, listNotifications, postEvent } from "./client/sdk.gen";
import type { NoteEvent } from "./client/types.gen";

declare const process: { argv: string[] };

const [url, service, user, id] = process.argv.slice(2) as [string, string, string, string];
const crm = createClient({ baseUrl: url, auth: service });
const phone = createClient({ baseUrl: url, auth: user });

const note: NoteEvent = {
  type: "note",
  notify: { users: [1], except: [3], unknown: "skip" },
  data: {
    user: 4,
    case: { id: "65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88", case_number: 6, relations_path_name: "Case type" },
  },
  params: { contact: "Jane Doe", body: "Hey", contact_id: "c2ccbb7e-d174-4894-ba5a-1828d0f09128" },
  id,
  key: "generated",
  deliver_at: "2020-01-01T00:00:00Z",
  about: ["order:42"],
};

async function main(): Promise<void> {
  const posted = await postEvent({ client: crm, body: note, throwOnError: true });
  await getEvent({ client: crm, path: { event_id: id }, query: { wait: 10 } });
  const page = await listNotifications({ client: phone, query: { per_page: 100 }, throwOnError: true });
  const refused = await postEvent({ client: crm, body: { ...note, id: null, notify: { users: [99] } } });
  console.log(
    JSON.stringify({
      posted: posted.data.id,
      skipped: posted.data.skipped,
      listed: page.data.data.map((each) => each.id),
      refused: refused.error?.errors.map(({ code, field }) => [code, field]),
    }),
  );
}

void main();
