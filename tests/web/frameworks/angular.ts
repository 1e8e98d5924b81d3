// A page in Angular around the element of the package.

import "tocsin-inbox";
import { Component, CUSTOM_ELEMENTS_SCHEMA, effect, signal } from "@angular/core";
import { bootstrapApplication } from "@angular/platform-browser";
import type { TocsinInboxEventMap } from "tocsin-inbox";

@Component({
  selector: "[data-service]",
  schemas: [CUSTOM_ELEMENTS_SCHEMA],
  template: `
    <nav>
      <button (click)="signedIn.set(!signedIn())">{{ signedIn() ? "Sign out" : "Sign in" }}</button>
      <output>{{ at() }}</output>
    </nav>
    @if (signedIn()) {
      <tocsin-inbox
        [src]="service"
        [tokenProvider]="token"
        (tocsin-open)="open($event)"
        (tocsin-count)="unread.set($event.detail.unread)"
      />
    }
  `,
})
class Page {
  readonly service = document.getElementById("app")!.dataset["service"]!;
  readonly signedIn = signal(true);
  readonly unread = signal(0);
  readonly at = signal("start");

  constructor() {
    effect(() => {
      document.title = this.unread() ? `(${this.unread()}) Cases` : "Cases";
    });
  }

  readonly token = async () => (await fetch("/token")).text();

  open(event: TocsinInboxEventMap["tocsin-open"]) {
    if (!event.detail.link) return;
    event.preventDefault(); // we go there ourselves
    this.at.set(event.detail.link);
  }
}

void bootstrapApplication(Page);
