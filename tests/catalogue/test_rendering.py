import copy
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.built_in import CATALOGUE
from tocsin.catalogue.rendering import Sentence, Word, has_only_allowed_tags, one_line, readable, spoken, spoken_text

SAMPLES = sorted(CATALOGUE.samples)
HOSTILE = [
    "**",
    "{user}",
    "{x}",
    "%s",
    "<b>",
    "</p>",
    "&amp;",
    "<br>",
    " <br> ",
    "\r\n",
    "\r",
    "\n",
    "<!--",
    "&lt",
    "'\"",
]

pieces = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
some_words = (
    st.lists(pieces, min_size=1, max_size=4).map("".join).filter(lambda words: words.strip() and len(words) < 500)
)


class Reader(HTMLParser):
    """Collects the visible text of HTML, and every unknown or unbalanced tag."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.strange: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"p", "strong", "em", "br"} or attrs:
            self.strange.append(tag)
        if tag == "br":
            self.text += "\n" if self.open else " <br> "
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.strange.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.strange.append(f"!{data}")

    def handle_decl(self, decl: str) -> None:
        self.strange.append(f"!{decl}")

    def handle_pi(self, data: str) -> None:
        self.strange.append(f"?{data}")

    def unknown_decl(self, data: str) -> None:
        self.strange.append(f"!{data}")


def in_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def leaves_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], str]]:
    """Return the free strings of an event, with their paths: no ids, no variants."""
    if isinstance(value, str):
        is_fixed = path[-1] in {"id", "correspondence_id", "account_id"} or path[:2] in {
            ("data", "event"),
            ("data", "activities"),
        }
        return [] if is_fixed else [(path, value)]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, part in inner for leaf in leaves_of(part, (*path, key))]


def put(event: Any, path: tuple[Any, ...], value: str) -> None:
    for key in path[:-1]:
        event = event[key]
    event[path[-1]] = value


@pytest.mark.parametrize("name", SAMPLES)
@given(draw=st.data())
def test_rendered_values_cannot_inject_markup(name: str, draw: st.DataObject) -> None:
    sample = CATALOGUE.samples[name]
    event = {part: copy.deepcopy(sample["event"].get(part, {})) for part in ("data", "params")}
    due = []
    for path, old in leaves_of(event):
        new = draw.draw(some_words)
        put(event, path, new)
        if old in sample["notification"]["message"]:
            of_lines = path in {("params", "body"), ("params", "message")}
            due.append(new.strip() if name == "custom" else new if of_lines else one_line(new))
    checked = CATALOGUE.check(sample["event"]["type"], event["data"], event["params"])
    words = CATALOGUE.render(checked.kind, "en", checked.data, checked.params)
    assert all(word in words.message for word in due)
    page = Reader(words.message_formatted)
    assert page.strange == []
    assert page.open == []
    assert in_lines(page.text) == in_lines(words.message)


@given(st.lists(st.sampled_from(["**", "a", "{x}", "<i>", "&", " "])).map("".join), some_words)
def test_sentence_with_unbalanced_bold_is_rejected(says: str, word: str) -> None:
    try:
        sentence = Sentence(says)
    except ValueError:
        assert says.count("**") % 2 == 1
        return
    said = sentence.render({"x": spoken(word)})
    page = Reader(f"<p>{said.html}</p>")
    assert (page.strange, page.open, page.text) == ([], [], said.plain)
    assert said.plain == says.replace("**", "").replace("{x}", one_line(word))


@pytest.mark.parametrize(
    "says", ["**a", "a ** b ** c **", "{", "}", "{}", "{a", "a}", "{a b}", "{a.b.c}", "{{a}}", "**{a**}"]
)
def test_malformed_sentence_is_rejected(says: str) -> None:
    with pytest.raises(ValueError, match=r"odd number|has no match"):
        Sentence(says)


def test_sentence_lists_each_placeholder_once() -> None:
    assert Sentence("{b} **{a.c}** {b}").words == ("b", "a.c")


def test_bold_marks_become_strong_tags_in_html_only() -> None:
    assert Sentence("**{a}** & b").render({"a": spoken("<x>")}) == Word("<x> & b", "<strong>&lt;x&gt;</strong> &amp; b")


def test_quotes_stay_as_they_are_in_html() -> None:
    assert spoken('Jane\'s "<case>"').html == 'Jane\'s "&lt;case&gt;"'


def test_each_line_break_becomes_one_br() -> None:
    assert spoken_text("a\r\nb\rc\nd\n\ne") == Word("a\r\nb\rc\nd\n\ne", "a<br>b<br>c<br>d<br><br>e")


def test_list_is_joined_with_commas_and_null_is_empty() -> None:
    assert spoken(["a", "<b>"]) == Word("a, <b>", "a, &lt;b&gt;")
    assert spoken(None) == spoken_text(None) == Word("", "")
    assert spoken(7) == Word("7", "7")


@pytest.mark.parametrize(
    ("code", "of", "words"),
    [
        ("the_early_bird", "badge", "The Early Bird"),
        ("level_12", "level", "12"),
        ("Level_12", "level", "12"),
        ("level_12", "badge", "Level 12"),
        ("level", "level", "Level"),
        ("level_", "level", "Level"),
        ("_", "level", "_"),
        ("", "level", ""),
        ("VIP_seller", "badge", "VIP Seller"),
        ("årets_sælger", "badge", "Årets Sælger"),
        ("Written by_hand", "badge", "Written by_hand"),
    ],
)
def test_code_names_are_made_readable(code: str, of: str, words: str) -> None:
    assert readable(code, of) == words


def render(name: str, **more: Any) -> Any:
    event = copy.deepcopy(CATALOGUE.samples[name]["event"])
    return CATALOGUE.render(name, "en", {**event["data"], **more.pop("data", {})}, {**event.get("params", {}), **more})


@pytest.mark.parametrize(
    ("code", "words"),
    [("level_2", "Beginner 2"), ("level_12", "12"), ("grand_master", "Grand Master")],
)
def test_levels_use_their_label_or_a_readable_name(code: str, words: str) -> None:
    said = render("gamification/new_level", data={"level": {"name": code}})
    assert said.message_formatted == f"<p>You have reached level <strong>{words}</strong></p>"


@pytest.mark.parametrize(
    ("count", "words"),
    [
        ("day", "daily"),
        ("week", "weekly"),
        ("month", "monthly"),
        ("quarter", "quarterly"),
        ("year", "yearly"),
        ("two_weeks", "two_weeks"),
    ],
)
def test_counts_render_as_adverbs_or_numbers(count: str, words: str) -> None:
    target = {"name": "Milestone", "title": "Car sale", "count": count}
    assert (
        render("gamification/target_reached", data={"target": target}).message
        == f"You have reached your {words} goal Car sale"
    )


@pytest.mark.parametrize(
    ("name", "param"),
    [
        ("gamification/new_level", "level_title"),
        ("high_fived/new_level", "level_title"),
        ("gamification/badge_achieved", "badge_title"),
        ("high_fived/badge_achieved", "badge_title"),
    ],
)
def test_producer_title_replaces_the_label(name: str, param: str) -> None:
    said = render(name, **{param: "the <very> best"})
    assert said.message.endswith(" the <very> best")
    assert said.message_formatted.endswith(" <strong>the &lt;very&gt; best</strong></p>")


@pytest.mark.parametrize("body", ["", " ", "\r\n", "\u2003"])
@pytest.mark.parametrize("name", ["note", "inbox", "incoming_email", "notified_report"])
def test_blank_quote_is_omitted(name: str, body: str) -> None:
    said = render(name, body=body)
    assert "<br>" not in said.message
    assert said.message_formatted.endswith("</p>")
    assert "<em>" not in said.message_formatted


def test_quote_keeps_its_lines() -> None:
    said = render("note", body=" one\r\n<two>\n")
    assert said.message.endswith("'s case <br>  one\r\n<two>\n")
    assert said.message_formatted.endswith("</p><br><p><em> one<br>&lt;two&gt;<br></em></p>")


def test_custom_message_is_unchanged_and_one_paragraph() -> None:
    said = render("custom", body="**Hi** {user},\n<all> & 'sundry'\r\nbye")
    assert said.message == "**Hi** {user},\n<all> & 'sundry'\r\nbye"
    assert said.message_formatted == "<p>**Hi** {user},<br>&lt;all&gt; &amp; 'sundry'<br>bye</p>"


def test_user_with_one_name_renders_without_extra_space() -> None:
    user = {"id": 4, "first_name": "", "last_name": "Prince", "profile_picture": None}
    assert render("notified_report", data={"user": user}).message.startswith("Prince wants you")


def test_genitives_take_the_mark_inside_the_bold() -> None:
    assert "<strong>Jane Doe's</strong>" in render("note").message_formatted


@pytest.mark.parametrize(
    "html",
    [
        "",
        "1 &lt; 2 > 0",
        "<p></p>",
        "<p>One</p><p><strong>two<br><em>three</em></strong></p>",
        "<em>x</em><br><br>",
    ],
)
def test_closed_and_nested_p_strong_em_and_br_are_allowed(html: str) -> None:
    assert has_only_allowed_tags(html)


@pytest.mark.parametrize(
    "html",
    [
        *("<", "1 < 2", "<p", "<p>x</p", "<!-- x -->"),
        *("<p>", "<p><em>x</em>", "<p><p>x</p>"),
        *("</p>", "x</em>", "<p>x</p></p>", "</p><p>"),
        *("<p>x</em>", "<p><em>x</p></em>", "<p><strong>x</p></strong>"),
        *("<P>x</P>", "<p >x</p>", "<p class='x'>x</p>", "<br/>", "</br>", "<b>x</b>", "<p><script>x</script></p>"),
        *("<<p>br></p>", "<<br>br>"),
    ],
)
def test_other_open_or_crossing_tags_are_not_allowed(html: str) -> None:
    assert not has_only_allowed_tags(html)
