"""Schemas of the API document: those of the kinds in the catalogue, and the simplification of all schemas."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from tocsin.api.requests import NewEvent
from tocsin.catalogue import Catalogue, Kind
from tocsin.preferences import SWITCHES
from tocsin.quiet_hours import DAYS, MAX_WINDOWS, TIME_OF_DAY

Schema = dict[str, Any]

_NO_NAME = re.compile(r"[^A-Za-z0-9]+")

_PARTS = ("Data", "Params", "Event", "Notification")
"""The suffixes of the schemas of each kind."""

_NUMBERS = {"maximum", "minimum"}

_STRICT = {"additionalProperties", "const", "default", "enum", "maxItems", "maxLength", "maximum", "minItems"} | {
    "minLength",
    "minimum",
    "pattern",
}


def of_catalogue(catalogue: Catalogue, taken: Collection[str]) -> dict[str, Schema]:
    """Return the schemas of all kinds, without the names in `taken`."""
    names = names_of(catalogue, taken)
    return {
        **dict(_of_kinds(catalogue, names)),
        "NewEvent": {"oneOf": [ref(f"{names[kind]}Event") for kind in catalogue.kinds]},
        "PreferencesPatch": _preferences_patch(catalogue),
    }


def names_of(catalogue: Catalogue, taken: Collection[str] = ()) -> dict[str, str]:
    """Return the prefix of the schemas of each kind: `GamificationNewLevel` for `gamification/new_level`.

    It has only letters and digits, because generators derive names of classes and modules from it.
    """
    taken = set(taken)
    found: dict[str, str] = {}
    for kind in catalogue.kinds:
        name = "".join(word[:1].upper() + word[1:] for word in _NO_NAME.split(kind))
        while taken.intersection(f"{name}{part}" for part in _PARTS):
            name += "Kind"
        taken.update(f"{name}{part}" for part in _PARTS)
        found[kind] = name
    return found


def ref(name: str) -> Schema:
    """Return a reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def tidied(schema: Any) -> Any:
    """Return a schema without keywords that generators handle badly.

    Titles are removed, because generators derive class names from them. Defaults are moved into descriptions, because
    some generators require such fields. Nullable types are lists of types instead of `anyOf`.
    """
    if isinstance(schema, list):
        return [tidied(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: tidied(value) for key, value in schema.items() if key not in {"title", "default", "properties"}}
    if "properties" in schema:
        found["properties"] = {name: tidied(of) for name, of in schema["properties"].items()}
    for limit in _NUMBERS & found.keys():
        found[limit] = int(found[limit])  # FastAPI converts them to floats
    default = schema.get("default")
    if default not in (None, [], {}, "", 0, False) or default is True:
        found.setdefault("description", f"left out: `{json.dumps(default)}`")
    return _flat(found)


def parameter(schema: Schema) -> Schema:
    """Return the schema of a parameter. It may be optional, but is never null."""
    default = {"default": schema["default"]} if schema.get("default") is not None else {}
    found = {**tidied({key: of for key, of in schema.items() if key != "default"}), **default}
    if isinstance(found["type"], list):
        found["type"] = found["type"][0]
        if "enum" in found:
            found["enum"] = [value for value in found["enum"] if value is not None]
    return found


def _flat(schema: Schema) -> Schema:
    """Return a schema of one type or null with a list of types instead of `anyOf`."""
    match schema.get("anyOf"):
        case [{"type": str() as type_} as one, {"type": "null"}]:
            beside = {key: value for key, value in schema.items() if key != "anyOf"}
            values = one.get("enum") or ([one["const"]] if "const" in one else [])
            rest = {key: value for key, value in one.items() if key not in {"type", "enum", "const"}}
            return {"type": [type_, "null"], **rest, **({"enum": [*values, None]} if values else {}), **beside}
        case _:
            return schema


def _of_kinds(catalogue: Catalogue, names: Mapping[str, str]) -> Iterator[tuple[str, Schema]]:
    """Yield, for each kind, the schemas of its data and params, its event and its notification."""
    parts = {
        kind: {part: tidied(schema) for part, schema in of_kind.items()}
        for kind, of_kind in catalogue.schemas().items()
    }
    for kind in catalogue.kinds.values():
        name = names[kind.name]
        yield from ((f"{name}{part.capitalize()}", schema) for part, schema in parts[kind.name].items())
        yield f"{name}Event", _event_of(kind, name)
        yield (
            f"{name}Notification",
            {
                "description": f"{kind.title}: a notification with the `data` of `{kind.name}`",
                "allOf": [ref("Notification"), _object({"data": _opened(parts[kind.name]["data"])})],
            },
        )


def _event_of(kind: Kind, name: str) -> Schema:
    """Return the schema of the event of a kind, as one object: generators ignore properties next to `oneOf`."""
    envelope = tidied(NewEvent.model_json_schema(ref_template="#/components/schemas/{model}"))
    required = kind.event.json_schema().get("required", [])
    parts = {part: ref(f"{name}{part.capitalize()}") for part in ("data", "params")}
    found = _object(
        {
            "type": {"type": "string", "const": kind.type},
            "notify": ref("Notify"),
            **{part: of if part in required else _or_null(of) for part, of in parts.items()},
            **{name: of for name, of in envelope["properties"].items() if name not in _OF_KINDS},
        }
    )
    return {**found, "required": ["type", "notify", *required], "description": kind.title}


def _opened(schema: Any) -> Any:
    """Convert a part of a request's schema to that of a response: open, and with users instead of their ids."""
    if isinstance(schema, list):
        return [_opened(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "oneOf" in schema:
        return _opened(next(choice for choice in schema["oneOf"] if choice["type"] == "object"))
    found = {key: _opened(part) for key, part in schema.items() if key not in {"properties", *_STRICT}}
    if "properties" in schema:
        found["properties"] = {name: _opened(part) for name, part in schema["properties"].items()}
    return found


def _preferences_patch(catalogue: Catalogue) -> Schema:
    """Return the schema of a merge patch of preferences, without unknown fields."""
    switches = {**_changes(dict.fromkeys(SWITCHES, _CHANGED)), "description": "null: the default"}
    return {
        **_changes(
            {
                "kinds": _changes(dict.fromkeys(catalogue.kinds, switches)),
                "quiet_hours": {
                    "type": ["array", "null"],
                    "maxItems": MAX_WINDOWS,
                    "items": _WINDOW,
                    "description": "replaces all windows; null: the default",
                },
                "paused_until": {
                    "type": ["string", "null"],
                    "format": "date-time",
                    "description": "with an offset; at most a year ahead",
                },
                "time_zone": {
                    "type": ["string", "null"],
                    "description": "an IANA name; null: the time zone in the directory",
                },
            }
        ),
        "type": "object",
        "additionalProperties": True,
        "description": "Changes of preferences (RFC 7396). Missing fields do not change, null restores the default, and"
        " unknown fields are ignored.",
    }


def _changes(properties: dict[str, Schema]) -> Schema:
    """Return the schema of an object in a merge patch with only these fields."""
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}


def _object(properties: dict[str, Schema], *optional: str) -> Schema:
    """Return the schema of an open object that requires these properties except the optional ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", **({"required": required} if required else {}), "properties": properties}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_OF_KINDS = {"type", "notify", "data", "params"}
"""The fields of an event that depend on the kind."""

_CHANGED: Schema = {"type": ["boolean", "null"]}
_TIME_OF_DAY: Schema = {"type": "string", "pattern": TIME_OF_DAY}
_WINDOW: Schema = {
    "type": "object",
    "required": ["from", "to"],
    "properties": {
        "days": {
            "type": ["array", "null"],
            "items": {"type": "string", "enum": list(DAYS)},
            "minItems": 1,
            "maxItems": len(DAYS),
            "description": "the days on which the window starts; left out: all",
        },
        "from": _TIME_OF_DAY,
        "to": {
            **_TIME_OF_DAY,
            "description": "the end; on the next day if earlier than `from`; must differ from `from`",
        },
    },
    "additionalProperties": True,
}
