import { createApp } from "vue";
import Page from "./List.vue";

const app = document.getElementById("app")!;
createApp(Page, { service: app.dataset["service"]! }).mount(app);
