// A page in React that draws the inbox itself, with the provider and the hook of the package.

import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { InboxProvider, useInbox } from "tocsin-inbox/react";

const app = document.getElementById("app")!;
const token = async () => (await fetch("/token")).text();

function List() {
  const { notifications, unread, connection, client } = useInbox();
  useEffect(() => {
    document.title = unread ? `(${unread}) Cases` : "Cases";
  }, [unread]);
  return (
    <section>
      <output>{connection}</output>
      <button onClick={() => client.markAllRead()}>Read all</button>
      <ul>
        {notifications.map((note) => (
          <li key={note.id} className={note.read_at ? "read" : "unread"}>
            {note.message} <button onClick={() => void client.markRead(note.id)}>Read</button>
            <button onClick={() => client.remove(note.id)}>Delete</button>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Page() {
  const [signedIn, setSignedIn] = useState(true);
  return (
    <>
      <nav>
        <button onClick={() => setSignedIn(!signedIn)}>{signedIn ? "Sign out" : "Sign in"}</button>
      </nav>
      {signedIn && (
        <InboxProvider src={app.dataset["service"]!} tokenProvider={token}>
          <List />
        </InboxProvider>
      )}
    </>
  );
}

createRoot(app).render(
  <StrictMode>
    <Page />
  </StrictMode>,
);
