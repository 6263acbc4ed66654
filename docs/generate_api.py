"""Write docs/api.md from the CRD, or with --check say whether it is stale. The CRD is the source; see crds/."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
PAGE = HERE / "api.md"
CRDS = HERE.parent / "crds"

Schema = dict[str, Any]

_HEAD = """\
# API

Every field of every kind, made from `crds/` by `docs/generate_api.py` (`make generate`); `kubectl explain` shows the same.
Fields that are not listed do not exist: the API server drops or refuses them.
"""


@dataclass(frozen=True)
class Field:
    """A row: `path` as users write it (`[]` for items of a list, `{}` for values of a map)."""

    path: str
    type: str
    default: str
    description: str


def page() -> str:
    """The whole page."""
    crds = [yaml.safe_load(path.read_text()) for path in sorted(CRDS.glob("*.yaml"))]
    return "\n".join([_HEAD, *(_kind(crd, version) for crd in crds for version in crd["spec"]["versions"])])


def _kind(crd: dict[str, Any], version: dict[str, Any]) -> str:
    names, schema = crd["spec"]["names"], version["schema"]["openAPIV3Schema"]
    short = ", ".join(f"`{name}`" for name in names.get("shortNames", []))
    parts = [
        f"## {names['kind']}\n",
        f"`{crd['spec']['group']}/{version['name']}`, {crd['spec']['scope'].lower()}"
        + (f", short name {short}" if short else "")
        + f".\n\n{schema.get('description', '')}\n",
    ]
    for name in ("spec", "status"):
        parts.append(f"### {name}\n\n{_table(list(fields(schema['properties'][name], name)))}")
    parts.append(f"### Rules\n\nWhat the API server checks beyond types and limits.\n\n{_rules(schema)}")
    parts.append(f"### Columns of `kubectl get`\n\n{_columns(version)}")
    return "\n".join(parts)


def fields(schema: Schema, path: str) -> Iterator[Field]:
    """All fields below a schema, in its order, parents before children."""
    required = set(schema.get("required", []))
    for name, child in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        kind = _type(child) + (", required" if name in required and "default" not in child else "")
        yield Field(here, kind, json.dumps(child["default"]) if "default" in child else "", _text(child))
        yield from _below(child, here)


def _below(schema: Schema, path: str) -> Iterator[Field]:
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return  # Kubernetes' own types: their documentation is elsewhere
    yield from fields(schema, path)
    if "items" in schema:
        yield from _below(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _below(schema["additionalProperties"], f"{path}{{}}")


def _type(schema: Schema) -> str:
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    kind = str(schema.get("type", "any"))
    if kind == "array":
        kind = f"list of {_type(schema['items'])}"
    elif isinstance(schema.get("additionalProperties"), dict):
        kind = f"map of {_type(schema['additionalProperties'])}"
    return kind + _limits(schema)


def _limits(schema: Schema) -> str:
    found = []
    if "enum" in schema:
        found.append("one of " + ", ".join(f"`{value}`" for value in schema["enum"]))
    for key, words in (("minimum", "at least"), ("maximum", "at most"), ("minItems", "min. items"), ("maxItems", "max. items")):
        if key in schema:
            found.append(f"{words} {schema[key]}")
    if "pattern" in schema:
        found.append(f"pattern `{schema['pattern']}`")
    return f" ({'; '.join(found)})" if found else ""


def _text(schema: Schema) -> str:
    return " ".join(str(schema.get("description", "")).split())


def _table(rows: list[Field]) -> str:
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        default = f"`{row.default}`" if row.default else ""
        lines.append(f"| `{row.path}` | {_cell(row.type)} | {_cell(default)} | {_cell(row.description)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def rules(schema: Schema, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and message of every CEL rule."""
    for rule in schema.get("x-kubernetes-validations", []):
        yield (path + rule.get("fieldPath", "")).lstrip(".") or "(object)", rule.get("message") or rule["rule"]
    for name, child in schema.get("properties", {}).items():
        yield from rules(child, f"{path}.{name}")
    if "items" in schema:
        yield from rules(schema["items"], f"{path}[]")


def _rules(schema: Schema) -> str:
    lines = ["| field | rule |", "|---|---|"]
    lines += [f"| `{path}` | {_cell(' '.join(message.split()))} |" for path, message in rules(schema)]
    return "\n".join(lines) + "\n"


def _columns(version: dict[str, Any]) -> str:
    lines = ["| column | from | meaning |", "|---|---|---|"]
    for column in version.get("additionalPrinterColumns", []):
        wide = " (`-o wide`)" if column.get("priority") else ""
        lines.append(f"| {column['name']}{wide} | `{column['jsonPath']}` | {_cell(_text(column))} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Entry point; the exit code of --check is 1 if the page is stale."""
    text = page()
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    if arguments == ["--check"]:
        print(f"{PAGE.relative_to(HERE.parent)} is stale: run `make generate`", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    print(f"wrote {PAGE.relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
