"""What the kinds accept, for people (`kinds`) and for editors (`schema`)."""

from types import ModuleType
from typing import Any

from pydantic import BaseModel

from jobs import kinds
from jobs.reading import PipelineFile, StepFile
from jobs.spec import NAME, Resources

_REFERENCE = {"type": "string", "pattern": r"\$\{[a-z0-9_]+\.[\w.-]+\}"}


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
    step["properties"]["kind"] = {"const": name, "description": summary(kind)}
    step["properties"]["settings"] = _collect(f"{name}.settings", kind.Settings, definitions)
    step["properties"]["resources"] = _collect("resources", Resources, definitions)
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
    """The first line of a kind's docstring."""
    return (kind.__doc__ or "").strip().splitlines()[0]


def describe(name: str) -> dict[str, Any]:
    """A kind as data: what it does, its settings and results with type, default and meaning."""
    kind = kinds.load(name)
    return {
        "kind": name,
        "about": (kind.__doc__ or "").strip(),
        "settings": list(_rows(kind.Settings)),
        "result": list(_rows(kind.Result)),
        "resources": kind.RESOURCES.model_dump(mode="json"),
    }


def _rows(model: type[BaseModel], prefix: str = "") -> "list[dict[str, Any]]":
    rows: list[dict[str, Any]] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            rows += _rows(inner, f"{prefix}{name}.")
            continue
        default = (
            "required"
            if field.is_required()
            else _shown(field.get_default(call_default_factory=True))
        )
        rows.append(
            {
                "name": prefix + name,
                "type": _type_name(inner),
                "default": default,
                "about": field.description or "",
            }
        )
    return rows


def _shown(value: Any) -> str:
    return (
        "" if value is None else str(value.model_dump() if isinstance(value, BaseModel) else value)
    )


def _type_name(annotation: Any) -> str:
    text = (
        annotation.__name__
        if isinstance(annotation, type) and not getattr(annotation, "__args__", ())
        else str(annotation)
    )
    for long, short in (("typing.", ""), ("pathlib.", ""), ("Literal", "one of ")):
        text = text.replace(long, short)
    return text
