"""The HTTP interface in Markdown, from the OpenAPI document of the application."""

import json
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

Schema = Mapping[str, Any]


def reference(document: Schema) -> str:
    """Return a section for each route and one for each shape of JSON."""
    lines = ["## Routes\n"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += _route(method.upper(), path, operation)
    lines.append("## Shapes\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _shape(name, schema)
    return "\n".join(lines)


def _route(method: str, path: str, operation: Schema) -> Iterator[str]:
    yield f"### {method} {path}\n"
    yield f"{operation['summary'].rstrip('?.')}{'?' if operation['summary'].endswith('?') else '.'}\n"
    if operation.get("parameters"):
        yield "| parameter | type | default | meaning |"
        yield "|---|---|---|---|"
        for parameter in operation["parameters"]:
            yield _row(parameter["name"], parameter["schema"], required=parameter.get("required", False))
        yield ""
    if "requestBody" in operation:
        ((_, body),) = operation["requestBody"]["content"].items()
        yield f"Body: {_type(body['schema'])}.\n"
    statuses = [status for status in operation["responses"] if status != "200"]
    answer = operation["responses"]["200"].get("content", {}).get("application/json", {})
    if "schema" in answer:
        yield f"Answer: {_type(answer['schema'])}.\n"
    if "example" in answer:
        yield f"```json\n{json.dumps(answer['example'], indent=2, ensure_ascii=False)}\n```\n"
    if statuses:
        yield "Problems: " + ", ".join(f"{status} {HTTPStatus(int(status)).phrase}" for status in statuses) + ".\n"


def _shape(name: str, schema: Schema) -> Iterator[str]:
    yield f"### {name}\n"
    if "description" in schema:
        yield f"{_text(schema['description'])}\n"
    if "properties" in schema:
        yield "| field | type | default | meaning |"
        yield "|---|---|---|---|"
        required = schema.get("required", ())
        for field, content in schema["properties"].items():
            yield _row(field, content, required=field in required)
        yield ""
    else:
        yield f"{_type(schema)}\n"


def _row(name: str, schema: Schema, *, required: bool) -> str:
    default = "required" if required else f"`{json.dumps(schema['default'])}`" if "default" in schema else "none"
    cells = (f"`{name}`", _type(schema), default, _text(schema.get("description", "")))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(schema: Schema) -> str:
    """Return a type in words: ``array of 1 to 256 TripleRef``."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "prefixItems" in schema:
        return "array of " + ", ".join(_type(item) for item in schema["prefixItems"])
    if schema.get("type") == "array":
        return f"array of {_range(schema, 'minItems', 'maxItems')}{_type(schema['items'])}"
    if schema.get("type") == "object" and "properties" in schema:
        return "object of " + ", ".join(f"`{field}`" for field in schema["properties"])
    return f"{schema['type']}{_bounds(schema)}"


def _bounds(schema: Schema) -> str:
    said = _range(schema, "minimum", "maximum") or _range(schema, "minLength", "maxLength")
    return f" ({said.strip()}{' characters' if 'maxLength' in schema else ''})" if said else ""


def _range(schema: Schema, least: str, most: str) -> str:
    low, high = (None if bound not in schema else int(schema[bound]) for bound in (least, most))
    if low is None and high is None:
        return ""
    if low == high:
        return f"{low} "
    return f"up to {high} " if low is None else f"at least {low} " if high is None else f"{low} to {high} "


def _text(description: str) -> str:
    return " ".join(description.split()).replace("``", "`")
