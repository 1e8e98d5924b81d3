import { mount } from "svelte";
import Page from "./Page.svelte";

const app = document.getElementById("app")!;
mount(Page, { target: app, props: { service: app.dataset["service"]! } });
