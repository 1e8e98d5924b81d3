/* When a user wants pushes, in words for support staff. */

const DAYS = 7;

/** Return the facts of preferences as of the API: each has a name and its text. */
export function wishes({ kinds, quiet_hours: windows, paused_until: until, time_zone: zone }) {
  const named = (matches) => Object.keys(kinds).filter((name) => matches(kinds[name])).sort().join(", ") || "none";
  return [
    ["Paused", until ? `until ${until} UTC: pushes wait, except of urgent kinds` : "no"],
    ["Quiet hours", windows.length ? `${windows.map(hours).join("; ")} (${zone})` : "none"],
    ["Not pushed to phones", named((kind) => !kind.push)],
    ["Not pushed to browsers", named((kind) => !kind.web_push)],
    ["Urgent kinds", named((kind) => kind.urgent)],
  ];
}

function hours({ days, from, to }) {
  return `${days.length === DAYS ? "every day" : days.join(", ")} ${from}–${to}`;
}
