"""Strings that programs are known to mishandle, each by what it is."""

import unicodedata
from collections.abc import Iterator

LENGTHS = (255, 320, 512, 1_000)
"""Maximum lengths of fields, in characters."""

ASTRAL = "\U0001f514"
"""A character of four bytes in UTF-8 and two units in UTF-16."""

STRINGS = {
    "nothing": "",
    "a space": " ",
    "white space": "\t\n\v\f\r \x85\xa0\u2028\u2029\u3000",
    "NUL": "a\0b",
    "a lone high surrogate": "a\ud83d",
    "a lone low surrogate": "\udd14b",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "an escape sequence": "\x1b[31mred\x1b[0m\x07\x08",
    "a byte order mark": "\ufeffa\ufeff",
    "noncharacters": "\ufffe\uffff\U0001fffe\U0010ffff",
    "private use": "\ue000\U000f0000",
    "unassigned": "\u0378\U000e0fff",
    "marks of direction": "a\u202eb\u2066c\u2069d\u200fe\u061cf",
    "right to left": "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd 1 + 2",
    "zero-width joiners": "a\u200bb\u200cc\u200dd\u2060e\u180ef",
    "a flood of combining marks": "a" + "\u0301\u0323\u20dd" * 60,
    "a combining mark first": "\u0301a",
    "composed": unicodedata.normalize("NFC", "\u00e9\u1ec7\uac01"),
    "decomposed": unicodedata.normalize("NFD", "\u00e9\u1ec7\uac01"),
    "compatibility": "\ufb01\u00b2\uff11\u2460\uff0e\uff0f\uff07\ufdfa",
    "case that changes the length": "\u0130\u0131\u00df\u1e9e\u0390\ufb03",
    "digits of other scripts": "\u0661\u0662\u0663\uff11\U0001d7cf",
    "a family": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "flags and skin": "\U0001f1e9\U0001f1f0\U0001f44d\U0001f3fd\U0001f3f4\U000e0067\U000e0062\U000e007f",
    "a variation": "\u2764\ufe0f\u845b\U000e0100",
    "look-alikes": "\u0440\u0430\u0443\u0440\u0430l",
    "quotes": "'\"`\u2019\u201d\\'",
    "SQL": "1'; drop table inbox; --",
    "an SQL comment": "*/ or 1=1 /* $1 $$ :name %s",
    "a pattern of SQL": "%_\\%",
    "an array of PostgreSQL": '{1,NULL,"a"}',
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "the allowed tags": "<p><strong>a</strong><br>b</p> <br> c",
    "entities": "&lt;&amp;&#0;&#x41;&notit;]]>",
    "a template": "{{7*7}} ${7*7} #{7*7} <%= 7*7 %> {user.first_name}",
    "marks of sentences": "**a** {body} {user} {{ }} * **",
    "a format": "%s%d%n%x {0} {0.__class__} {!r} %(a)s $(id) `id`",
    "line ends": "a\r\nSet-Cookie: a=b\r\n\r\nb\rc\nd",
    "an ended event of a stream": "a\n\ndata: b\nevent: deleted\nid: 9\n\n",
    "a path": "../../../etc/passwd",
    "an encoded path": "%2e%2e%2f%00%c0%ae",
    "a path of Windows": "C:\\..\\con\\nul.txt",
    "slashes": "//a/./b/?c=d#e;f",
    "a URL": "javascript:alert(1)//https://user:pass@127.0.0.1:5432/",
    "an integer": "1",
    "zero": "-0",
    "the largest integer and one": str(2**31),
    "a long integer": "9" * 5_000,
    "a float": "1e309",
    "not a number": "NaN",
    "hexadecimal": "0x1",
    "an integer with underscores": "1_000",
    "null": "null",
    "true": "true",
    "an object": '{"__proto__": {"admin": true}}',
    "a name of Python": "__class__",
    "a name of JavaScript": "constructor",
    "a time with an odd zone": "2026-02-30T25:61:61+99:99",
    "the first year": "0000-01-01T00:00:00Z",
    "the last year": "9999-12-31T23:59:59.999999+14:00",
    "a UUID in braces": "{00000000-0000-4000-8000-000000000000}",
    "a UUID as a URN": "urn:uuid:00000000-0000-4000-8000-000000000000",
    "base64 that is cut": "e30=.e30",
    "backtracking": "a" * 2_000 + "!",
    "nested brackets": "[" * 2_000,
    "nested stars": "*" * 2_001,
    "long": "x" * 12_000,
    "long, of four bytes": ASTRAL * 12_000,
    **{f"{length} of four bytes": ASTRAL * length for length in LENGTHS},
    **{f"{length} of four bytes, and one": ASTRAL * (length + 1) for length in LENGTHS},
}


def is_sendable(text: str) -> bool:
    """Return whether JSON of the service may contain a string: neither NUL nor a lone surrogate."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def part_of(turn: int, parts: int) -> Iterator[tuple[str, str]]:
    """Yield every string of which the place is `turn` modulo `parts`."""
    for place, (name, text) in enumerate(STRINGS.items()):
        if place % parts == turn % parts:
            yield name, text
