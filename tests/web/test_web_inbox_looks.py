"""Appearance of the web inbox: accessibility, themes, directions, and untrusted text."""

import asyncio
import itertools
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.support.host_page import (
    SCREENSHOTS,
    STARTED,
    Host,
    Window,
    Windows,
    asked,
    browsing,
    hosting,
    imported,
    many,
    notify,
    opened,
)
from tests.support.service import serving
from tocsin.catalogue import Catalogue

ARABIC: dict[str, Any] = {"first_name": "محمد", "last_name": "الأحمد", "profile_picture": None}
ISOLATES = "\u2068\u2069"
WHITE, BLACK = "rgb(255, 255, 255)", "rgb(22, 25, 29)"
GERMAN = (
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft hat die "
    "Rindfleischetikettierungsüberwachungsaufgabenübertragung abgeschlossen"
)


async def everything(host: Host) -> None:
    """Post a notification of every kind, some of earlier days, some read."""
    api = host.service
    await imported(
        api, {"The quarterly report is ready": 400, "Your campaign Spring has been sent": 2, "A task is due": 1}
    )
    samples = api.app_state.catalogue.samples.values()
    for sample in list(samples)[::-1]:
        event: dict[str, Any] = sample["event"]
        await api.post({**event, "notify": {"users": [1]}})
    ids = await api.ids(1)
    await api.as_user(1, "PUT", "/notifications/read", json={"ids": [*ids[3:5], *ids[7:]]})


async def shown(window: Window) -> None:
    await window.open()
    await expect(window.rows.first).to_be_visible()


async def unread(window: Window) -> None:
    await shown(window)
    await window.panel.get_by_role("tab", name="Unread").click()
    await expect(window.panel.get_by_role("tab", name="Unread")).to_have_attribute("aria-selected", "true")


async def hovered(window: Window) -> None:
    await shown(window)
    await window.rows.nth(1).hover()


async def deleted(window: Window) -> None:
    await shown(window)
    await window.page.keyboard.press("ArrowDown")
    await window.page.keyboard.press("e")
    await expect(window.part("toast")).to_be_visible()


async def preferences(window: Window) -> None:
    await window.open()
    await window.button("Preferences").click()
    await expect(window.panel.get_by_role("switch").first).to_be_visible()
    await window.button("Add quiet hours").click()
    await expect(window.panel.get_by_label("From", exact=True).first).to_be_visible()


async def preferences_below(window: Window) -> None:
    await preferences(window)
    await window.panel.get_by_role("switch").last.scroll_into_view_if_needed()


async def helped(window: Window) -> None:
    await window.open()
    await window.page.keyboard.press("?")


async def offline(window: Window) -> None:
    await shown(window)
    await window.page.context.set_offline(offline=True)
    await expect(window.part("notice")).to_be_visible()


THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

STATES: dict[str, Callable[[Window], Awaitable[None]]] = {
    "list": shown,
    "unread": unread,
    "hovered": hovered,
    "deleted": deleted,
    "preferences": preferences,
    "preferences-below": preferences_below,
    "help": helped,
    "offline": offline,
}


async def at_rest(page: Page) -> None:
    """Wait for the end of transitions and animations, except endless ones."""
    await page.evaluate(
        """() => Promise.allSettled(
          document.getAnimations()
            .filter(({ effect }) => effect.getComputedTiming().endTime !== Infinity)
            .map(({ finished }) => finished),
        )"""
    )


async def picture(window: Window, name: str) -> None:
    await at_rest(window.page)
    SCREENSHOTS.mkdir(exist_ok=True)
    await window.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.mark.parametrize("width", [900, 360])
async def test_every_state_is_accessible_in_both_themes(host: Host, chromium: Browser, width: int) -> None:
    await everything(host)
    found = {}
    lasting = [(name, THEMES) for name in STATES if name != "deleted"]
    for name, themes in [*lasting, *(("deleted", (theme,)) for theme in THEMES)]:  # its toast ends
        async with browsing(chromium, host, viewport={"width": width, "height": 720}) as windows:
            window = await windows.new()
            await window.page.emulate_media(color_scheme=themes[0])
            await STATES[name](window)
            for theme in themes:
                await window.page.emulate_media(color_scheme=theme)
                await picture(window, f"{name}-{theme}-{width}")
                found[name, theme] = await window.barriers()
            assert await window.page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert {state: barriers for state, barriers in found.items() if barriers} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_empty_states_are_accessible_in_both_themes(host: Host, chromium: Browser, theme: Any) -> None:
    async def fails(window: Window) -> None:
        await window.page.route("**/notifications?*", lambda route: route.abort())
        await window.open()
        await expect(window.panel.get_by_role("alert")).to_be_visible()

    async def loads(window: Window) -> None:
        await window.page.route("**/notifications?*", lambda _: None)
        await window.open()

    async def empty(window: Window) -> None:
        await window.open()
        await expect(window.part("empty")).to_be_visible()

    async def none_unread(window: Window) -> None:
        await empty(window)
        await window.panel.get_by_role("tab", name="Unread").click()
        await expect(window.part("empty")).to_contain_text("caught up")

    for name, reach in {"error": fails, "loading": loads, "empty": empty, "empty-unread": none_unread}.items():
        async with browsing(chromium, host, color_scheme=theme) as windows:
            window = await windows.new()
            await reach(window)
            await picture(window, f"{name}-{theme}")
            assert await window.barriers() == [], name


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_theme_attribute_overrides_the_system_theme(host: Host, chromium: Browser, theme: str) -> None:
    host.embed(f'theme="{theme}"')
    await notify(host.service, "One")
    other = "dark" if theme == "light" else "light"
    async with browsing(chromium, host, color_scheme=other) as windows:
        window = await windows.new()
        await shown(window)
        background = await window.panel.evaluate("(panel) => getComputedStyle(panel).backgroundColor")
        assert background == (WHITE if theme == "light" else BLACK)


@pytest.mark.parametrize(
    ("says", "background"), [("", WHITE), ("light", WHITE), ("dark", BLACK), ("light dark", BLACK)]
)
async def test_default_theme_is_the_color_scheme_of_the_page(
    host: Host, chromium: Browser, says: str, background: str
) -> None:
    host.style = f":root {{ color-scheme: {says} }}" if says else ""
    async with browsing(chromium, host, color_scheme="dark") as windows:
        window = await windows.new()
        await window.open()
        assert await computed(window.panel, "backgroundColor") == background


COLOURS = {
    "accent": "rgb(225, 29, 72)",
    "on-accent": "rgb(255, 255, 254)",
    "border": "rgb(254, 205, 211)",
    "background": "rgb(255, 247, 248)",
    "text": "rgb(20, 30, 40)",
    "muted": "rgb(90, 91, 92)",
    "hover": "rgb(240, 241, 242)",
    "unread": "rgb(250, 240, 230)",
    "badge": "rgb(1, 99, 2)",
    "on-badge": "rgb(254, 253, 252)",
    "radius": "3px",
}
NAMES_OF_PAGES = {name: name for name in COLOURS} | {
    "border": "line",
    "background": "bg",
    "text": "fg",
    "unread": "new",
    "badge": "alert",
    "on-badge": "on-alert",
    "radius": "corner",
}
"""Common names of color properties that a page may pass to the element."""


async def test_page_can_set_colors_by_custom_properties(host: Host, chromium: Browser) -> None:
    own = "".join(f"--{NAMES_OF_PAGES[name]}: {value};" for name, value in COLOURS.items())
    handed = "".join(f"--tocsin-{name}: var(--{NAMES_OF_PAGES[name]});" for name in COLOURS)
    host.style = f":root {{ {own} --shade: red; --left: 1px; --room: 2px; --hue: none }} tocsin-inbox {{ {handed} }}"
    async with browsing(chromium, host) as windows:
        window = await opened(windows, "One", "Two")
        assert await computed(window.panel, "backgroundColor") == COLOURS["background"]
        assert await computed(window.panel, "color") == COLOURS["text"]
        assert await computed(window.panel, "borderTopColor") == COLOURS["border"]
        assert await computed(window.panel, "borderTopLeftRadius") == COLOURS["radius"]
        assert "0px 10px 30px" in await computed(window.panel, "boxShadow")
        assert await computed(window.badge, "backgroundColor") == COLOURS["badge"]
        assert await computed(window.badge, "color") == COLOURS["on-badge"]
        await window.page.mouse.move(5, 5)
        assert await computed(window.rows.first, "backgroundColor") == COLOURS["unread"]
        assert await computed(window.rows.last, "borderTopColor", "::before") == COLOURS["border"]
        assert await computed(window.rows.first.locator(".dot i"), "backgroundColor") == COLOURS["accent"]
        assert await computed(window.rows.first.locator(".time"), "color") == COLOURS["muted"]
        await window.page.keyboard.press("ArrowDown")
        assert await outline(window) == f"solid 2px {COLOURS['accent']}"
        await window.button("Preferences").click()
        switch = window.panel.get_by_role("switch", checked=True).first
        await expect(switch).to_be_visible()
        assert await computed(switch, "backgroundColor", "::before") == COLOURS["accent"]
        assert await computed(switch, "backgroundColor", "::after") == COLOURS["background"]
        await window.page.keyboard.press("Tab")
        assert await outline(window) == f"solid 2px {COLOURS['accent']}"


TEXT_OF_A_PAGE = {
    "white-space": "nowrap",
    "text-transform": "uppercase",
    "letter-spacing": "3px",
    "word-spacing": "9px",
    "text-indent": "20px",
    "text-shadow": "1px 1px red",
    "text-align": "center",
    "font-style": "italic",
    "font-variant-caps": "small-caps",
    "cursor": "wait",
    "word-break": "break-all",
    "line-height": "3",
    "list-style-type": "square",
    "-webkit-user-select": "none",
    "hyphens": "none",
    "tab-size": "20",
}


async def test_text_styles_of_the_page_do_not_affect_the_panel(host: Host, chromium: Browser) -> None:
    looks = """(found, names) => names.map((name) => getComputedStyle(found).getPropertyValue(name))"""
    kept = {}
    for style in ("", "".join(f"{name}: {value};" for name, value in TEXT_OF_A_PAGE.items())):
        host.style = f"header {{ {style} }}"
        async with browsing(chromium, host) as windows:
            window = await opened(windows, "One message of some words")
            places = [window.panel, window.rows.first.locator(".text")]
            kept[bool(style)] = [await place.evaluate(looks, list(TEXT_OF_A_PAGE)) for place in places]
            await host.service.as_user(1, "DELETE", f"/notifications/{(await host.service.ids(1))[0]}")
    assert kept[True] == kept[False]


async def test_sentence_keeps_its_direction_in_right_to_left_pages(host: Host, chromium: Browser) -> None:
    host.body = host.body.replace("<header>", '<header dir="rtl">')
    await notify(host.service, "One", by=4)
    async with browsing(chromium, host) as windows:
        window = await windows.new(go=False)
        await window.page.clock.install()
        await window.go()
        await shown(window)
        await window.page.clock.fast_forward("05:00")
        time = window.rows.locator("time")
        await expect(time).to_have_text("5 min. ago")
        for words in (time, window.part("sender")):
            lefts = await words.evaluate_all(
                """([words]) =>
                  [[words.firstChild, 0], [words.lastChild.lastChild ?? words.lastChild, 4]].map((at) => {
                  const range = document.createRange();
                  range.setStart(...at);
                  range.setEnd(at[0], at[1] + 1);
                  return range.getBoundingClientRect().left;
                })"""
            )
            assert lefts[0] < lefts[1]
        box, text = await time.bounding_box(), await window.panel.locator(".said").bounding_box()
        assert box
        assert text
        assert abs(box["x"] + box["width"] - text["x"] - text["width"]) < 1


async def test_unread_rows_have_no_gap(host: Host, chromium: Browser) -> None:
    host.style = "tocsin-inbox { --tocsin-unread: rgb(0, 0, 255); --tocsin-border: rgb(0, 0, 255); font-size: 13.3px }"
    async with browsing(chromium, host, device_scale_factor=1.1) as windows:
        window = await opened(windows, *[f"Note {at}" for at in range(6)])
        await window.page.mouse.move(5, 5)
        first, last = await window.rows.first.bounding_box(), await window.rows.last.bounding_box()
        assert first
        assert last
        strip: Any = {"x": first["x"] + 4, "y": first["y"] + 2, "width": 3, "height": last["y"] - first["y"]}
        shot = b64encode(await window.page.screenshot(clip=strip)).decode()
        colours = await window.page.evaluate(
            """async (shot) => {
              const image = new Image();
              image.src = `data:image/png;base64,${shot}`;
              await image.decode();
              const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
              canvas.drawImage(image, 0, 0);
              const { data } = canvas.getImageData(0, 0, image.width, image.height);
              const pixels = Array.from({ length: data.length / 4 }, (_, at) => data.slice(4 * at, 4 * at + 3).join());
              return [...new Set(pixels)];
            }""",
            shot,
        )
        assert colours == ["0,0,255"]


async def test_only_rows_with_links_have_the_pointer_cursor(
    url: str, catalogue: Catalogue, chromium: Browser, host: Host
) -> None:
    async with browsing(chromium, host) as windows:
        window = await opened(windows, "One")
        await expect(window.rows.locator("[href]")).to_have_count(1)
        assert await computed(window.rows.locator(".main"), "cursor") == "pointer"
    async with hosting() as plain, serving(url, catalogue, cors_origins=(plain.origin,)) as api:
        plain.serves(api)
        async with browsing(chromium, plain) as windows:
            window = await windows.new()
            await shown(window)
            assert await computed(window.rows.locator(".main"), "cursor") in {"auto", "default"}


async def computed(place: Locator, name: str, of: str | None = None) -> str:
    """Return a computed property of an element, or of its pseudo-element."""
    value: str = await place.evaluate("(found, [name, of]) => getComputedStyle(found, of)[name]", [name, of])
    return value


async def outline(window: Window) -> str:
    """Return the outline of the focused part of the element."""
    found: str = await window.page.evaluate(
        """() => {
          const { outlineStyle, outlineWidth, outlineColor } = getComputedStyle(inbox.shadowRoot.activeElement);
          return `${outlineStyle} ${outlineWidth} ${outlineColor}`;
        }"""
    )
    return found


async def test_page_mode_shows_the_list_in_place(host: Host, chromium: Browser) -> None:
    host.embed('mode="page"', around="{}")
    await everything(host)
    async with browsing(chromium, host, viewport={"width": 720, "height": 900}) as windows:
        window = await windows.new()
        await expect(window.rows.first).to_be_visible()
        await expect(window.bell).to_have_count(0)
        await picture(window, "page")
        assert await window.barriers() == []
        await window.page.mouse.wheel(0, 5000)
        await expect(window.rows).to_have_count(27)
        await window.page.mouse.wheel(0, 5000)
        await window.page.wait_for_function("scrollY + innerHeight > document.documentElement.scrollHeight - 1")
        before = await window.rows.last.bounding_box()
        await notify(host.service, "New")
        await expect(window.part("pill")).to_be_in_viewport()
        assert await window.rows.last.bounding_box() == before
        await picture(window, "page-new")


async def test_bidi_names_do_not_reorder_the_sentence(host: Host, chromium: Browser) -> None:
    await people_and_words(host)
    async with browsing(chromium, host) as windows:
        window = await windows.new()
        await shown(window)
        names = await window.row("سارة").locator(".text bdi").all_text_contents()
        assert [name.strip(ISOLATES) for name in names] == ["محمد الأحمد", "note", "سارة"]
        sentence = window.row("mentioned you").first.locator("p").first
        assert await sentence.evaluate("(p) => getComputedStyle(p).direction") == "ltr"
        await picture(window, "arabic-names")
        assert await window.barriers() == []


async def test_right_to_left_page_mirrors_the_layout(host: Host, chromium: Browser) -> None:
    await people_and_words(host)
    host.body = host.body.replace("<header>", '<header dir="rtl">')
    async with browsing(chromium, host) as windows:
        window = await windows.new()
        await shown(window)
        avatar, dot = (
            await window.part("avatar").first.bounding_box(),
            await window.rows.first.locator(".dot").bounding_box(),
        )
        assert avatar
        assert dot
        assert avatar["x"] > dot["x"]
        await picture(window, "right-to-left")
        assert await window.barriers() == []


async def test_quiet_hours_stay_within_the_panel_of_a_small_phone(host: Host, chromium: Browser) -> None:
    await people_and_words(host)
    async with browsing(chromium, host, viewport={"width": 320, "height": 568}) as windows:
        window = await windows.new()
        await shown(window)
        await window.button("Preferences").click()
        await window.button("Add quiet hours").click()
        end, hint = window.panel.get_by_label("To", exact=True), window.panel.get_by_text("Pushes are held")
        await expect(end).to_be_visible()
        outer, inner = [await each.evaluate("(each) => each.getBoundingClientRect().right") for each in (hint, end)]
        assert inner <= outer


async def test_long_words_break_without_widening_the_panel(host: Host, chromium: Browser) -> None:
    await people_and_words(host)
    host.lang = "de"
    async with browsing(chromium, host, viewport={"width": 360, "height": 720}) as windows:
        window = await windows.new()
        await shown(window)
        assert await window.panel.locator(".body").evaluate("(body) => body.scrollWidth <= body.clientWidth")
        await expect(window.panel.get_by_role("heading", level=2)).to_have_text("Benachrichtigungen")
        await picture(window, "german-360")
        await window.button("Einstellungen").click()
        await expect(window.panel.get_by_role("switch").first).to_be_visible()
        assert await window.panel.locator(".body").evaluate("(body) => body.scrollWidth <= body.clientWidth")
        await picture(window, "german-preferences-360")


async def people_and_words(host: Host) -> None:
    api = host.service
    await api.people(5, **ARABIC)
    note = api.app_state.catalogue.samples["note"]["event"]
    about = {**note["data"], "user": 5}
    await api.post(
        {**note, "notify": {"users": [1]}, "data": about, "params": {"contact": "سارة", "body": "من فضلك اتصل بي غدًا"}}
    )
    await notify(api, GERMAN, "x" * 500, "Ein kurzer Satz", by=4)
    await api.post(
        {
            **note,
            "notify": {"users": [1]},
            "data": {**note["data"], "user": 4},
            "params": {
                "contact": "محمد الأحمد (VIP)",
                "body": "Kraftfahrzeughaftpflichtversicherungsbescheinigung " * 20,
            },
        }
    )


@pytest.mark.parametrize(
    ("lang", "title"),
    [("da", "Notifikationer"), ("de-AT", "Benachrichtigungen"), ("en-GB", "Notifications"), ("fr", "Notifications")],
)
async def test_inbox_uses_the_language_of_the_page(host: Host, chromium: Browser, lang: str, title: str) -> None:
    host.lang = lang
    await notify(host.service, "One")
    async with browsing(chromium, host) as windows:
        window = await windows.new()
        await shown(window)
        await expect(window.panel.get_by_role("heading", level=2)).to_have_text(title)
        assert await window.barriers() == []
        await window.page.evaluate("() => { inbox.lang = 'en' }")
        await window.open()
        await expect(window.panel.get_by_role("heading", level=2)).to_have_text("Notifications")


FRENCH = """
inbox.words = {
  title: "Notifications", readAll: "Tout marquer comme lu", preferences: "Préférences", unread: "Non lues",
  unreadCount: "{} non lues", fresh: (n) => `${n} nouvelles`, empty: { all: ["Rien", "Tout est lu."] },
};
"""


async def test_page_can_supply_words_for_another_language(host: Host, chromium: Browser) -> None:
    host.lang = "fr"
    host.script += FRENCH
    await imported(host.service, {"Eve": 1})
    async with browsing(chromium, host) as windows:
        window = await windows.new()
        await expect(window.bell).to_have_attribute("aria-label", "Notifications, 1 non lues")
        await shown(window)
        await expect(window.button("Tout marquer comme lu")).to_be_visible()
        await expect(window.panel.get_by_role("tab", name="Non lues")).to_be_visible()
        await expect(window.panel.get_by_role("heading", level=3)).to_have_text("Hier")
        await expect(window.panel).to_have_attribute("lang", "fr")
        await expect(window.panel.get_by_role("button", name="Delete")).to_have_count(1)  # English where none is given
        await host.service.as_user(1, "DELETE", f"/notifications/{(await host.service.ids(1))[0]}")
        await expect(window.part("empty")).to_contain_text("Tout est lu.")
        await window.page.evaluate("() => { inbox.words = null }")
        await window.open()
        await expect(window.button("Mark all as read")).to_be_visible()


async def test_browser_language_is_the_fallback(host: Host, chromium: Browser) -> None:
    host.lang = ""
    async with browsing(chromium, host, locale="da-DK") as windows:
        window = await windows.new()
        await window.open()
        await expect(window.panel.get_by_role("heading", level=2)).to_have_text("Notifikationer")


HOSTILE = [
    "<img src=x onerror=\"document.title='taken'\">",
    "<script>document.title='taken'</script>",
    "<svg/onload=document.title='taken'>",
    "<a href=\"javascript:document.title='taken'\">click</a>",
    "</p></li></ul></div><h1>Outside</h1><style>*{display:none}</style>",
    "{{constructor.constructor('document.title=1')()}}",
    "\u202eesrever\u202c \u2066\u2067\u200f",
    "Z\u0351\u0352\u0353\u0354\u0355\u0356\u0357\u0358" * 40,
    "&lt;b&gt; &amp;amp; \u0000"[:-1],
    "W" * 400,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 " * 60,
]


async def test_user_text_is_never_interpreted_as_markup(windows: Windows) -> None:
    window = await opened(windows, *HOSTILE)
    await expect(
        window.rows.locator(":is(img, script, svg[onload], style, h1, [onerror], [onload], [style]):not(.avatar)")
    ).to_have_count(0)
    texts = await window.page.locator("tocsin-inbox .text").evaluate_all(
        "(texts) => texts.map((text) => text.textContent)"
    )
    assert [text.strip() for text in texts] == [message.strip() for message in HOSTILE[::-1]]
    assert await window.page.title() == "Host"
    assert await window.panel.locator(".body").evaluate("(body) => body.scrollWidth <= body.clientWidth")
    boxes = [await row.bounding_box() for row in await window.rows.all()]
    assert all(
        upper["y"] + upper["height"] <= lower["y"] + 1 for upper, lower in itertools.pairwise(boxes) if upper and lower
    )
    assert all(box["height"] < 180 for box in boxes if box)


async def test_unexpected_markup_is_sanitized(windows: Windows) -> None:
    """Defence in depth: the test changes the responses of the service."""
    [id_] = await notify(windows.host.service, "One")
    evil = (
        "<p onclick=\"document.title='taken'\" style='position:fixed' class=row>A <strong id=x dir=rtl>B</strong> "
        "<em>C</em><br>"
        "<img src=x onerror=\"document.title='taken'\"><a href='javascript:1'>D</a>"
        "<script>document.title='taken'</script>"
        "<style>*{display:none}</style><iframe srcdoc='<script>1</script>'></iframe><svg><script>1</script></svg>"
        "<math><mtext><table><mglyph><style><img src=x onerror=\"document.title='taken'\">"
    )
    note = (await windows.host.service.inbox(1))["data"][0]
    note["message_formatted"] = evil
    note["data"] = {"user": {"first_name": "<b>", "last_name": 7, "profile_picture": 'https:"><script>'}}
    page = {"data": [note], "pagination": {"total": 1, "unread": 1, "urls": {"previous": None, "next": None}}}
    headers = {"Access-Control-Allow-Origin": "*"}
    await windows.context.route("**/notifications?*", lambda route: route.fulfill(json=page, headers=headers))
    link = {"data": {id_: "javascript:document.title='taken'"}}
    await windows.context.route("**/notifications/links?*", lambda route: route.fulfill(json=link, headers=headers))
    window = await windows.new()
    await shown(window)
    made = await window.rows.locator(".text").evaluate("(text) => text.innerHTML")
    assert made.startswith('<p dir="auto">A <strong><bdi>B</bdi></strong> <em>C</em><br>D')
    assert not any(word in made for word in ("script", "style", "img", "svg", "onclick", "class", "javascript"))
    await expect(window.rows.locator(".main")).not_to_have_attribute("href", "")
    await window.rows.locator(".main").click()
    assert await window.rows.locator(".main").get_attribute("href") is None
    assert [event["link"] for event in await window.heard("tocsin-open")] == [None]
    assert await window.page.title() == "Host"
    assert all("inline" in complaint for complaint in window.complaints), window.complaints
    window.complaints.clear()


async def test_page_without_csp_needs_two_lines(host: Host, chromium: Browser) -> None:
    host.strict, host.script = False, STARTED
    host.embed(f'token="{host.token()}"', around="{}")
    await notify(host.service, "One")
    async with browsing(chromium, host) as windows:
        window = await windows.new()
        await shown(window)


async def test_page_can_fill_slots(host: Host, chromium: Browser) -> None:
    host.embed(inside='<b slot="bell">Post</b><i slot="empty">Nothing, dear</i><u slot="header">Beta</u>')
    async with browsing(chromium, host) as windows:
        window = await windows.new()
        await expect(window.bell).to_contain_text("")
        await window.page.get_by_text("Post").click()
        await expect(window.page.get_by_text("Nothing, dear")).to_be_visible()
        await expect(window.page.get_by_text("Beta")).to_be_visible()
        await window.page.evaluate("() => inbox.style.setProperty('--tocsin-background', 'rgb(1, 2, 3)')")
        assert await window.panel.evaluate("(panel) => getComputedStyle(panel).backgroundColor") == "rgb(1, 2, 3)"


DRAWS = """
inbox.renderItem = (notification) => {
  if (notification.message.endsWith("usual")) return null;
  if (notification.message.endsWith("broken")) throw new Error("a mistake of the page");
  const row = document.createElement("p");
  row.className = "drawn";
  row.textContent = `${notification.read_at ? "old" : "new"}: ${notification.message}`;
  notification.message = "changed";
  return row;
};
"""


async def test_page_can_render_rows_in_its_own_style(host: Host, chromium: Browser) -> None:
    host.script += DRAWS
    host.style += " .drawn { color: rgb(1, 2, 3) }"
    await notify(host.service, "One", "Two", "usual")
    async with browsing(chromium, host) as windows:
        window = await windows.new()
        await shown(window)
        drawn = window.page.locator("tocsin-inbox > .drawn")
        await expect(drawn).to_have_text([re.compile("new: .*Two"), re.compile("new: .*One")])
        assert await drawn.first.evaluate("(row) => getComputedStyle(row).color") == "rgb(1, 2, 3)"
        await expect(window.row("usual").locator(".text")).to_be_visible()
        await expect(window.rows.nth(1).locator(".text")).to_be_hidden()
        assert await window.barriers() == []
        await window.page.keyboard.press("j")
        await window.page.keyboard.press("j")
        await window.page.keyboard.press("u")
        await expect(drawn.last).to_have_text(re.compile("old: .*Two"))
        await window.page.keyboard.press("e")
        await window.page.keyboard.press("Escape")
        await window.open()
        await expect(drawn).to_have_text([re.compile("new: .*One")])
        await window.page.evaluate("() => { inbox.renderItem = null }")
        await expect(drawn).to_have_count(0)
        await expect(window.row("One").locator(".text")).to_be_visible()


async def test_row_falls_back_to_the_default_if_the_page_fails(host: Host, chromium: Browser) -> None:
    host.script += DRAWS
    await notify(host.service, "broken")
    async with browsing(chromium, host) as windows:
        window = await windows.new()
        await shown(window)
        await expect(window.row("broken").locator(".text")).to_be_visible()
        assert all("a mistake of the page" in complaint for complaint in window.complaints)
        window.complaints.clear()


async def test_missing_words_fall_back_to_builtin_english(host: Host, chromium: Browser) -> None:
    await notify(host.service, "One")
    async with browsing(chromium, host) as windows:
        requests = asked(windows, "/inbox-words-")
        window = await windows.new()
        await shown(window)
        assert requests == []
    host.lang = "da"
    async with browsing(chromium, host) as windows:
        requests = asked(windows, "/inbox-words-da.json")
        await windows.context.route("**/inbox-words-da.json", lambda route: route.abort())
        window = await windows.new()
        await shown(window)
        await expect(window.panel.get_by_role("heading", level=2)).to_have_text("Notifications")
        assert requests


async def test_properties_set_before_upgrade_are_kept(host: Host, chromium: Browser) -> None:
    host.script = STARTED + 'inbox.mode = "page"; inbox.tokenProvider = async () => (await fetch("/token")).text();'
    await notify(host.service, "One")
    async with browsing(chromium, host) as windows:
        await windows.context.route("**/inbox.js", later)
        window = await windows.new()
        await expect(window.rows).to_have_count(1)


async def later(route: Any) -> None:
    await asyncio.sleep(0.3)
    await route.continue_()


async def test_reduced_motion_and_forced_colors_are_respected(host: Host, chromium: Browser) -> None:
    await everything(host)
    async with browsing(chromium, host, reduced_motion="reduce", forced_colors="active") as windows:
        window = await windows.new()
        await shown(window)
        await picture(window, "forced-colors")
        await window.button("Preferences").click()
        switch = window.panel.get_by_role("switch").first
        await expect(switch).to_be_visible()
        await picture(window, "forced-colors-preferences")
        assert await switch.evaluate("(switch_) => getComputedStyle(switch_, '::after').transitionProperty") == "none"


async def test_controls_are_at_least_24_pixels(windows: Windows) -> None:
    window = await opened(windows, "One", "Two " * 120)
    await expect(window.button("Read more")).to_be_visible()
    for reach in ("list", "preferences"):
        if reach == "preferences":
            await window.button("Preferences").click()
            await expect(window.panel.get_by_role("switch").first).to_be_visible()
        small = await window.page.locator("tocsin-inbox").evaluate(
            """(inbox) => [...inbox.shadowRoot.querySelectorAll("button, a, input, select")]
              .map((control) => [control.className || control.id, control.getBoundingClientRect()])
              .filter(([, box]) => box.width && (box.width < 24 || box.height < 24)).map(([name]) => name)"""
        )
        assert small == []


async def test_many_rows_and_zoomed_text_fit(host: Host, chromium: Browser) -> None:
    await many(host.service, 30)
    async with browsing(chromium, host, viewport={"width": 450, "height": 380}) as windows:
        window = await windows.new()
        await window.page.evaluate("() => { document.documentElement.style.fontSize = '32px' }")
        await shown(window)
        await picture(window, "zoomed")
        assert await window.panel.locator(".body").evaluate("(body) => body.scrollWidth <= body.clientWidth")
        box = await window.panel.bounding_box()
        assert box
        assert box["x"] + box["width"] <= 450
