"""Write the chart's generated files, or with --check say which of them are stale.

crds/*.yaml                -> holdfast/files/crds/         so that the chart is whole by itself
operator/rbac-rules.yaml   -> holdfast/files/rbac-rules.yaml
dashboard.py               -> holdfast/dashboards/holdfast.json
values.schema.json, values.yaml -> the table of values in holdfast/README.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from dashboard import dashboard

HERE = Path(__file__).resolve().parent
CHART = HERE / "holdfast"
_BEGIN, _END = "<!-- values: begin -->", "<!-- values: end -->"


def generated() -> dict[Path, str]:
    """Every generated file with the content that it should have."""
    crds = {CHART / "files" / "crds" / path.name: path.read_text() for path in sorted((HERE.parent / "crds").glob("*.yaml"))}
    return {
        **crds,
        CHART / "files" / "rbac-rules.yaml": (HERE.parent / "operator" / "rbac-rules.yaml").read_text(),
        CHART / "dashboards" / "holdfast.json": json.dumps(dashboard(), indent=1) + "\n",
        CHART / "README.md": _readme(),
    }


def stale() -> list[Path]:
    """Generated files that are missing, differ from what they should be, or should not be there."""
    wanted = generated()
    differ = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    return differ + [path for path in (CHART / "files" / "crds").glob("*") if path not in wanted]


def _readme() -> str:
    text = (CHART / "README.md").read_text()
    head, rest = text.split(_BEGIN)
    return f"{head}{_BEGIN}\n{_values_table()}{_END}{rest.split(_END)[1]}"


def _values_table() -> str:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for path, description in leaves(schema, schema):
        default: Any = values
        for name in path:
            default = default[name]
        lines.append(f"| `{'.'.join(path)}` | `{json.dumps(default)}` | {description} |")
    return "\n".join(lines) + "\n"


def leaves(schema: dict[str, Any], node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Path and description of every value that the schema describes (Helm's own `global` left out)."""
    target = node
    if "$ref" in node:
        target = schema["definitions"][node["$ref"].rsplit("/", 1)[1]]
    if "properties" in target:
        for name, child in target["properties"].items():
            if (*path, name) != ("global",):
                yield from leaves(schema, child, (*path, name))
    else:
        yield path, node.get("description", target.get("description", ""))


def main(arguments: list[str]) -> int:
    """Entry point; the exit code of --check is 1 if anything is stale."""
    old = stale()
    if arguments == ["--check"]:
        for path in old:
            print(f"{path.relative_to(HERE.parent)} is stale: run `make generate`", file=sys.stderr)
        return 1 if old else 0
    wanted = generated()
    for path in old:
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
        else:
            path.unlink()
        print(f"{'wrote' if path in wanted else 'removed'} {path.relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
