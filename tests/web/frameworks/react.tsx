// A page in React around the example of docs/guides/web-inbox.md: it shows what it was told, and signs out and in.

import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { Inbox } from "./Inbox";

const service = document.getElementById("app")!.dataset["service"]!;
const token = async () => (await fetch("/token")).text();

function Page() {
  const [signedIn, setSignedIn] = useState(true);
  const [at, setAt] = useState("start");
  return (
    <>
      <nav>
        <button onClick={() => setSignedIn(!signedIn)}>{signedIn ? "Sign out" : "Sign in"}</button>
        <output>{at}</output>
      </nav>
      {signedIn && <Inbox service={service} token={token} onOpen={setAt} />}
    </>
  );
}

createRoot(document.getElementById("app")!).render(
  <StrictMode>
    <Page />
  </StrictMode>,
);

// What the element does not have does not compile.
// @ts-expect-error: there is no such mode
export const mode = <tocsin-inbox mode="drawer" />;
// @ts-expect-error: a token is text
export const provider = <tocsin-inbox tokenProvider={() => 7} />;
// @ts-expect-error: the count tells of no link
export const told = <tocsin-inbox ontocsin-count={(event) => event.detail.link} />;
