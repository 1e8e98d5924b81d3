import { createApp } from "vue";
import Page from "./Page.vue";

const app = document.getElementById("app")!;
createApp(Page, { service: app.dataset["service"]! }).mount(app);
