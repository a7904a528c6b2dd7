"""A JSON schema of the configuration file, made from the declarations of the settings."""

from __future__ import annotations

from typing import Any

from pgstash.settings.config.sections import MOST_LABELS, OTHER_KEYS, SETTINGS, Depth
from pgstash.settings.config.toml_file import PLAINTEXT
from pgstash.settings.config.values import SEPARATED, WORDS
from pgstash.settings.fleet import LABEL
from pgstash.settings.model import Settings, variable_of

_KEPT = ("type", "enum", "const", "minimum", "maximum", "pattern")
_STRINGS = {"type": "array", "items": {"type": "string"}}


def schema() -> dict[str, Any]:
    """Return the schema, for editors and checks of the file before it is installed."""
    declared = Settings.model_json_schema()["properties"]
    names = SETTINGS[Depth.DEFAULTS]
    definitions = {name: _setting(name, declared[name]) for name in declared if name in names}
    server = _section(Depth.SERVER)
    server["properties"]["database"] = _tables(_section(Depth.DATABASE))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration file of pgstash",
        "type": "object",
        "additionalProperties": False,
        "required": ["servers"],
        "properties": {
            PLAINTEXT: {"type": "boolean"},
            "defaults": _section(Depth.DEFAULTS),
            "stores": _tables(_section(Depth.STORE)),
            "servers": _tables(server),
        },
        "$defs": definitions | {"reference": _reference()},
    }


def _section(depth: Depth) -> dict[str, Any]:
    declared = [name for name in Settings.model_fields if name in SETTINGS[depth]]
    properties: dict[str, Any] = {name: {"$ref": f"#/$defs/{name}"} for name in declared}
    if "store" in OTHER_KEYS[depth]:
        properties["store"] = {"type": "string"}
    if "labels" in OTHER_KEYS[depth]:
        label = {"type": "string", "pattern": f"^{LABEL.pattern}$"}
        properties["labels"] = {"type": "array", "items": label, "maxItems": MOST_LABELS}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "patternProperties": {"^copy_.": {}},
    }


def _tables(section: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": section}


def _setting(name: str, declared: dict[str, Any]) -> dict[str, Any]:
    kinds = [each for each in declared.get("anyOf", [declared]) if each.get("type") != "null"]
    values = [{key: each[key] for key in _KEPT if key in each} for each in kinds]
    if name in SEPARATED or name in WORDS:
        values.append(_STRINGS)
    # An empty string unsets.
    values += [{"const": ""}, {"$ref": "#/$defs/reference"}]
    help_ = Settings.model_fields[name].description or ""
    return {
        "description": f"{help_} Expects {variable_of(name).expected}.",
        "anyOf": values,
    }


def _reference() -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "env": {"type": "string", "minLength": 1},
        "file": {"type": "string", "minLength": 1},
        "command": _STRINGS | {"minItems": 1},
    }
    return {
        "oneOf": [
            {
                "type": "object",
                "additionalProperties": False,
                "required": [kind],
                "properties": {kind: value},
            }
            for kind, value in kinds.items()
        ]
    }
