"""Models whose fields are described by the docstrings below them, which are read when a JSON Schema is made.

pydantic's `use_attribute_docstrings` does the same when a class is made, and takes a tenth of the start of the service.
"""

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic_core import CoreSchema


class DescribedModel(BaseModel):
    """A model whose JSON Schema has the docstrings of its fields."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the docstrings to the JSON Schema. A description in the annotation takes precedence."""
        found = handler(schema)
        properties = handler.resolve_ref_schema(found).get("properties", {})
        for name, field in cls.model_fields.items():
            text = docstring_of(cls, name)
            if text and not field.description and (described := properties.get(field.alias or name)) is not None:
                described["description"] = text
        return found


def docstring_of(model: type, name: str) -> str | None:
    """Return the docstring below a field, in the class that declares it last."""
    owner = next(each for each in model.__mro__ if name in inspect.get_annotations(each))
    return _docstrings(owner.__module__).get((owner.__qualname__, name))


@cache
def _docstrings(module: str) -> dict[tuple[str, str], str]:
    """Return the docstrings below the fields of all classes of a module, by class and field."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    classes = [each for each in tree.body if isinstance(each, ast.ClassDef)]
    return {(each.name, field): text for each in classes for field, text in _of_class(each)}


def _of_class(declared: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, after in pairwise(declared.body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            yield field.target.id, inspect.cleandoc(after.value.value)
