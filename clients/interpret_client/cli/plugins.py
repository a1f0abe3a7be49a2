"""`interpret plugins`."""

import json
from collections.abc import Mapping
from typing import Any

import click

from ..results import PluginInfo
from ._options import Settings, connection_options
from ._output import console, pairs, print_json, table

_LIMITS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
}


@click.group(invoke_without_command=True)
@click.option("--kind", help="Only plugins of this kind, such as attribution or attack.")
@connection_options
@click.pass_context
def plugins(context: click.Context, kind: str | None) -> None:
    """List the plugins, or show one."""
    if context.invoked_subcommand is not None:
        return
    settings = context.ensure_object(Settings)
    with settings.connect() as client:
        found = client.plugins(kind)
    if settings.json:
        print_json(found)
        return
    rows = [
        (plugin.name, plugin.kind, ", ".join(sorted(plugin.requires)), plugin.summary)
        for plugin in found
    ]
    console().print(table(("name", "kind", "requires", "summary"), rows))


@plugins.command()
@click.argument("name")
@connection_options
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show the plugin NAME with its parameters."""
    with settings.connect() as client:
        plugin = client.plugin(name)
    if settings.json:
        print_json(plugin)
    else:
        _print_plugin(plugin)


def _print_plugin(plugin: PluginInfo) -> None:
    out = console()
    out.print(f"{plugin.name} ({plugin.kind}, version {plugin.version})", style="bold")
    out.print()
    out.print(plugin.description.strip())
    out.print()
    out.print(
        pairs(
            [
                ("inputs", plugin.inputs),
                ("rows", plugin.rows),
                ("targets", ", ".join(sorted(plugin.target_kinds)) or "none"),
                ("requires", ", ".join(sorted(plugin.requires))),
                ("from", plugin.distribution),
            ]
        )
    )
    sections = (
        (("parameter", "type", "default", ""), parameter_rows(plugin.schema)),
        (
            ("tensor", "", ""),
            [
                (item.name, "required" if item.required else "optional", item.description)
                for item in plugin.tensors
            ],
        ),
        (
            ("model role", "", "requires", ""),
            [
                (
                    item.name,
                    "required" if item.required else "optional",
                    ", ".join(sorted(item.requires)),
                    item.description,
                )
                for item in plugin.models
            ],
        ),
        (
            ("result", "role", ""),
            [(item.name, item.role, item.description) for item in plugin.results],
        ),
    )
    for columns, rows in sections:
        if rows:
            out.print()
            out.print(table(columns, rows))


def parameter_rows(schema: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, type, default and description of every parameter in a JSON Schema."""
    required = schema.get("required", ())
    rows = []
    for name, field in schema.get("properties", {}).items():
        default = (
            "required"
            if name in required
            else json.dumps(field["default"])
            if "default" in field
            else ""
        )
        rows.append((name, type_text(field, schema), default, field.get("description", "")))
    return rows


def type_text(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a field takes, in a few words: `integer >= 1`, `l1 | l2`, `number > 0 | null`."""
    if "$ref" in field:
        name = str(field["$ref"]).rsplit("/", 1)[-1]
        return type_text(schema.get("$defs", {}).get(name, {"type": name}), {})
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " | ".join(type_text(item, schema) for item in field[key])
    if field.get("type") == "array":
        item = field.get("items")
        return f"list of {type_text(item, schema)}" if item else "list"
    limits = [f"{sign} {field[key]:g}" for key, sign in _LIMITS.items() if key in field]
    return " ".join([str(field.get("type", "any")), *limits])
