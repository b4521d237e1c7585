"""What --help shows: the flags of a tool in groups, each with the docstring below it."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
from typing import Annotated

import tyro

Groups = dict[str, tuple[str, ...]]  # title -> names of flags


def read_docstrings(args_class) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, on one line.

    tyro keeps their line breaks, which are those of the source.
    """
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(args_class))).body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def group_flags(args_class, groups: Groups) -> type:
    """Return a class with the same flags for tyro, in groups; those in none come first."""
    texts, fields = read_docstrings(args_class), {}
    for field in dataclasses.fields(args_class):
        kind = Annotated[field.type, tyro.conf.arg(help=texts.get(field.name, ""))]
        has_default = field.default is not dataclasses.MISSING
        default = dataclasses.field(default=field.default) if has_default else dataclasses.field()
        fields[field.name] = (field.name, kind, default)
    parts = [
        (title, [fields.pop(name) for name in names if name in fields])
        for title, names in groups.items()
    ]
    outer = list(fields.values())
    for title, members in parts:
        part = dataclasses.make_dataclass(title, members)
        kind = Annotated[part, tyro.conf.OmitArgPrefixes]
        outer.append((title.replace(" ", "_"), kind, dataclasses.field(default_factory=part)))
    return dataclasses.make_dataclass("Flags", outer, namespace={"__doc__": args_class.__doc__})
