"""Write types, calls and errors of an interface for Rust: no crate that Debian ships speaks varlink.

python3 generate.py io.moorage.Machine.varlink >src/moorage.rs
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from moorage.wire.idl import Array, Builtin, Fields, Map, Named, Nullable, Type, Values, parse

BUILTINS = {
    "bool": "bool",
    "int": "i64",
    "float": "f64",
    "string": "String",
    "object": "serde_json::Value",
    "any": "serde_json::Value",
}

KEYWORDS = {"type", "match", "ref", "move", "self", "use", "where", "loop", "impl", "in"}

HEAD = """// Made by generate.py.
#![allow(dead_code)]

use serde::{Deserialize, Serialize};

pub trait Method: Serialize {
    const NAME: &'static str;
    type Reply: for<'a> Deserialize<'a>;
}
"""


def snake(name: str) -> str:
    """Return a name as Rust writes those of fields."""
    found = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return f"r#{found}" if found in KEYWORDS else found


def written(found: Type) -> str:
    """Return a type as Rust writes it."""
    match found:
        case Builtin(name):
            return BUILTINS[name]
        case Named(name):
            return name
        case Nullable(element):
            return f"std::option::Option<{written(element)}>"  # there is an Option of moored.conf
        case Array(element):
            return f"Vec<{written(element)}>"
        case Map(element):
            return f"std::collections::BTreeMap<String, {written(element)}>"
        case Values():
            return "String"  # a newer service may have more of them
        case _:
            raise NotImplementedError(found)


def members(fields: Fields, indent: str, visibility: str = "pub ") -> Iterator[str]:
    """Return the fields of a structure."""
    for name, found in fields.fields.items():
        options = [f'rename = "{name}"']
        if isinstance(found, Nullable):
            options += ["default", 'skip_serializing_if = "std::option::Option::is_none"']
        yield f"{indent}#[serde({', '.join(options)})]\n{indent}{visibility}{snake(name)}: {written(found)},"


def structure(name: str, fields: Fields) -> str:
    """Return a structure."""
    lines = "\n".join(members(fields, "    "))
    return f"#[derive(Clone, Debug, Default, Serialize, Deserialize)]\npub struct {name} {{\n{lines}\n}}\n"


def generated(text: str) -> Iterator[str]:
    """Return the parts of the module."""
    described = parse(text)
    yield HEAD
    for name, found in described.types.items():
        yield (
            structure(name, found) if isinstance(found, Fields) else f"pub type {name} = {written(found)};\n"
        )
    for name, (takes, gives) in described.methods.items():
        yield structure(f"{name}In", takes)
        yield structure(f"{name}Out", gives)
        yield (
            f'impl Method for {name}In {{\n    const NAME: &\'static str = "{described.name}.{name}";\n'
            f"    type Reply = {name}Out;\n}}\n"
        )
    yield '#[derive(Clone, Debug, Deserialize)]\n#[serde(tag = "error", content = "parameters")]\npub enum Error {'
    for name, fields in described.errors.items():
        lines = "\n".join(members(fields, "        ", ""))
        body = f" {{\n{lines}\n    }}" if lines else " {}"
        yield f'    #[serde(rename = "{described.name}.{name}")]\n    {name}{body},'
    yield "}"


if __name__ == "__main__":
    print("\n".join(generated(Path(sys.argv[1]).read_text())))
