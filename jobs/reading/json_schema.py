"""What the kinds accept, for people (`kinds`) and for editors (`schema`)."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs import kinds
from jobs.errors import UserError, nearest
from jobs.pipeline import NAME, Fault, Resources
from jobs.reading.file_schema import PipelineFile, StepFile
from jobs.reading.former import with_new_names
from jobs.reading.paths import Place
from jobs.reading.references import PATTERN
from lact_asr.config.training import TrainingConfig

_REFERENCE = {"type": "string", "pattern": PATTERN}
_NAMES = {  # JSON Schema's words -> those of a file's reader
    "string": "text",
    "boolean": "true or false",
    "null": "null",
}


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a pipeline file: editors complete and check with it."""
    definitions: dict[str, Any] = {}
    steps = [_step_schema(name, kinds.load(name), definitions) for name in kinds.NAMES]
    top = PipelineFile.model_json_schema()
    top["properties"]["steps"] = {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": NAME},
        "additionalProperties": {
            "type": "object",
            "required": ["kind"],
            "properties": {"kind": {"enum": list(kinds.NAMES)}},
            "allOf": steps,
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **top,
        "$defs": definitions,
    }


def _step_schema(name: str, kind: ModuleType, definitions: dict[str, Any]) -> dict[str, Any]:
    """`if kind is NAME, then these settings`."""
    step = StepFile.model_json_schema()
    del step["$defs"]
    step["properties"]["kind"] = {"const": name, "description": summary(kind)}
    step["properties"]["settings"] = _collect(f"{name}.settings", kind.Settings, definitions)
    step["properties"]["resources"] = _collect("resources", Resources, definitions)
    step["properties"]["faults"]["items"] = {"$ref": "#/$defs/fault"}
    definitions["fault"] = Fault.model_json_schema()
    names = {"enum": list(kind.Result.model_fields)}
    if kind.Result.model_config.get("extra") != "allow":
        step["properties"]["gate"]["propertyNames"] = names
    return {"if": {"properties": {"kind": {"const": name}}}, "then": step}


def _collect(name: str, model: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """Put a model's schema under `definitions`; every value in it may also be a reference."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    for inner, definition in schema.pop("$defs", {}).items():
        definitions[f"{name}.{inner}"] = _with_references(definition)
    definitions[name] = _with_references({**schema, "required": []})
    return {"$ref": f"#/$defs/{name}"}


def _with_references(schema: dict[str, Any]) -> dict[str, Any]:
    fields = schema.get("properties", {})
    for name, field in fields.items():
        about = {key: field[key] for key in ("description", "default") if key in field}
        fields[name] = {**about, "anyOf": [field, _REFERENCE]}
    return schema


def summary(kind: ModuleType) -> str:
    """The first line of a kind's docstring, which Python leaves out where PYTHONOPTIMIZE is 2."""
    return (kind.__doc__ or kind.__name__).strip().splitlines()[0]


def describe(name: str, preset: str = "") -> dict[str, Any]:
    """A kind as data: what it does, its settings and results with type, default and meaning.

    What a preset (the kind's own default one, if none is given) says of a setting stands in the
    place of its default. UserError for a preset that the kind does not have.
    """
    kind = kinds.load(name)
    return {
        "kind": name,
        "about": (kind.__doc__ or "").strip(),
        "settings": _rows(kind.Settings, _in_force(name, kind.Settings, preset)),
        "result": _rows(kind.Result, {}),
        "resources": kind.RESOURCES.model_dump(mode="json"),
    }


def _in_force(name: str, settings: type[BaseModel], preset: str) -> dict[str, str]:
    """Settings that a preset sets, by their places: their values, with the preset's name."""
    field = settings.model_fields.get("preset")
    if field is None:
        if preset:
            raise UserError(f"--preset {preset}: {name} has no presets: leave it out")
        return {}
    presets = get_args(field.annotation)
    preset = with_new_names(settings, {"preset": preset or field.default})["preset"]
    if preset not in presets:
        raise UserError(f"no preset {preset!r} of {name}: {nearest(preset, presets)}")
    chosen: Any = settings.model_construct(preset=preset)
    said = {"training": TrainingConfig.others_off(chosen.recipe()), "model": chosen.shape()}
    values = {".".join(map(str, place)): value for place, value in leaves(said)}
    return {place: f"{_show_value(value)} (preset {preset})" for place, value in values.items()}


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """The values of blocks inside blocks; what is to change of a model is one value."""
    if isinstance(value, Mapping) and place != ("model",):
        for key, inner in value.items():
            yield from leaves(inner, (*place, key))
    elif value != {}:
        yield place, value


def _rows(
    model: type[BaseModel], in_force: Mapping[str, str], prefix: str = ""
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    types = model.model_json_schema()["properties"]
    for key, field in model.model_fields.items():
        name, inner = f"{prefix}{key}", field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            rows += _rows(inner, in_force, f"{name}.")
            continue
        default = "required" if field.is_required() else _show_value(_default(field))
        rows.append(
            {
                "name": name,
                "type": _words(types[key]),
                "default": in_force.get(name, default),
                "about": field.description or "",
            }
        )
    return rows


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _show_value(value: Any) -> str:
    """A value as a file would have it."""
    if value is None:
        return ""
    if isinstance(value, (str, Path)):
        return str(value)
    return json.dumps(value, default=str)


def _words(schema: Mapping[str, Any]) -> str:
    """A type in words, from its JSON Schema: what a file may say."""
    if options := schema.get("anyOf"):
        return " or ".join(map(_words, options))
    if values := schema.get("enum", [schema["const"]] if "const" in schema else None):
        return "one of " + ", ".join(map(str, values)) if len(values) > 1 else str(values[0])
    name = schema.get("type", "anything")
    if isinstance(name, list):
        return " or ".join(_words({"type": each}) for each in name)
    if "prefixItems" in schema:
        return f"list ({', '.join(map(_words, schema['prefixItems']))})"
    if name == "array":
        return f"list of {_words(schema['items'])}" if schema.get("items") else "list"
    if name == "object":
        inner = schema.get("additionalProperties")
        return f"mapping to {_words(inner)}" if isinstance(inner, dict) and inner else "mapping"
    return "path" if schema.get("format") == "path" else _NAMES.get(name, name)
