// Posts a `note` event with all optional fields, lists the inbox that it came to, and reads an error, by a client of
// openapi-generator (typescript-fetch); prints what it saw as JSON.

import { Configuration, EventsApi, NotificationsApi, ResponseError, type Errors, type NoteEvent } from "./client/index";

declare const process: { argv: string[] };

const [url, service, user, id] = process.argv.slice(2) as [string, string, string, string];
const events = new EventsApi(new Configuration({ basePath: url, accessToken: service }));
const inbox = new NotificationsApi(new Configuration({ basePath: url, accessToken: user }));

const note: NoteEvent = {
  type: "note",
  notify: { users: [1], except: [3], unknown: "skip" },
  data: {
    user: 4,
    _case: { id: "65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88", caseNumber: 6, relationsPathName: "Case type" },
  },
  params: { contact: "Jane Doe", body: "Hey", contactId: "c2ccbb7e-d174-4894-ba5a-1828d0f09128" },
  id,
  key: "generated",
  deliverAt: new Date("2020-01-01T00:00:00Z"),
  about: ["order:42"],
};

async function refused(): Promise<(string | undefined)[]> {
  try {
    await events.postEvent({ newEvent: { ...note, id: null, notify: { users: [99] } } });
    return [];
  } catch (error) {
    if (!(error instanceof ResponseError)) throw error;
    const { errors }: Errors = await error.response.json();
    return errors.map(({ field }) => field);
  }
}

async function main(): Promise<void> {
  const posted = await events.postEvent({ newEvent: note });
  await events.getEvent({ eventId: id, wait: 10 });
  const page = await inbox.listNotifications({ perPage: 100 });
  const listed = page.data.map((each) => each.id);
  console.log(JSON.stringify({ posted: posted.id, listed, refused: await refused() }));
}

void main();
