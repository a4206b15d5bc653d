"""Docstrings as the API pages show them: [`name`] becomes a link, where the name is documented.

A name is looked up as its module would, and else among all that the package has; one that is not there, or there
several times, is an error.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import griffe

RETURNS = re.compile(r"(?<=Returns:\n)(?: +\S.*\n?)+")  # what stands before a colon is no type there
REFERENCE = re.compile(r"\[`([\w.]+)`\](?![\[(])")
DOCTEST = re.compile(r"^( *)Example:\n(?=\1 +>>> )", flags=re.MULTILINE)  # sessions have a section of their own


class References(griffe.Extension):
    """Completes the references in the docstrings of a package."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        objects = list(members(pkg))
        places = defaultdict(set)
        for obj in objects:
            places[obj.name].add(obj.path)

        def link(obj: griffe.Object, name: str) -> str:
            try:
                path = obj.resolve(name)
            except griffe.NameResolutionError:
                head, _, rest = name.partition(".")
                (path,) = places[head]
                path += f".{rest}" * bool(rest)
            return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'

        for obj in objects:
            if obj.docstring is not None:
                text = DOCTEST.sub(r"\1Examples:\n", obj.docstring.value)
                text = RETURNS.sub(lambda match: match[0].replace(": ", "&#58; "), text)
                obj.docstring.value = REFERENCE.sub(lambda match, obj=obj: link(obj, match[1]), text)


def members(obj: griffe.Object) -> Iterator[griffe.Object]:
    """All that is defined in a package, names that are imported apart."""
    for member in obj.members.values():
        if not member.is_alias:
            yield member
            yield from members(member)
