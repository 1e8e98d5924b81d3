/** @jsxImportSource solid-js */
// A page in Solid around the element of the package.

import "tocsin-inbox";
import { createEffect, createSignal, Show } from "solid-js";
import { render } from "solid-js/web";
import type { TocsinInboxEventMap, TocsinInboxProps } from "tocsin-inbox";

declare module "solid-js" {
  namespace JSX {
    interface IntrinsicElements {
      "tocsin-inbox": HTMLAttributes<HTMLElement> & Pick<TocsinInboxProps, "src"> & {
        "prop:tokenProvider"?: TocsinInboxProps["tokenProvider"];
        "on:tocsin-open"?: (event: TocsinInboxEventMap["tocsin-open"]) => void;
        "on:tocsin-count"?: (event: TocsinInboxEventMap["tocsin-count"]) => void;
      };
    }
  }
}

const app = document.getElementById("app")!;
const token = async () => (await fetch("/token")).text();

function Page() {
  const [signedIn, setSignedIn] = createSignal(true);
  const [unread, setUnread] = createSignal(0);
  const [at, setAt] = createSignal("start");
  createEffect(() => {
    document.title = unread() ? `(${unread()}) Cases` : "Cases";
  });

  function open(event: TocsinInboxEventMap["tocsin-open"]) {
    if (!event.detail.link) return;
    event.preventDefault(); // we go there ourselves
    setAt(event.detail.link);
  }

  return (
    <>
      <nav>
        <button onClick={() => setSignedIn(!signedIn())}>{signedIn() ? "Sign out" : "Sign in"}</button>
        <output>{at()}</output>
      </nav>
      <Show when={signedIn()}>
        <tocsin-inbox
          src={app.dataset["service"]!}
          prop:tokenProvider={token}
          on:tocsin-open={open}
          on:tocsin-count={(event) => setUnread(event.detail.unread)}
        />
      </Show>
    </>
  );
}

render(Page, app);
