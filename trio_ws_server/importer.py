"""Import strings, ``module:attribute``, to the objects that they name."""

from __future__ import annotations

import difflib
import importlib
import re
from typing import Any

from trio_ws_server.errors import AppImportError

# names with dots between them on both sides of the colon; of a file's path, none
_FORM = re.compile(r"[^:./]+(\.[^:./]+)*:[^:.]+(\.[^:.]+)*")


def import_from_string(import_string: str) -> Any:
    """
    Return the object that ``module:attribute`` names; the attribute may have dots.

    Raises `AppImportError` where there is no such module or attribute. What the module itself raises while it
    is imported comes out as it is, a missing import of its own included.
    """
    if not _FORM.fullmatch(import_string):
        raise AppImportError(
            f'cannot import {import_string!r}: it must have the form "module:attribute", '
            'such as "chat.main:app"'
        )
    module_name, path = import_string.split(":")
    if module_name.endswith(".py"):
        raise AppImportError(
            f"cannot import {import_string!r}: a module is named without .py; did you mean "
            f"{module_name.removesuffix('.py') + ':' + path!r}?"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if missing != module_name and not module_name.startswith(f"{missing}."):
            raise
        raise AppImportError(
            f"cannot import module {module_name!r}: there is no {missing!r} in the current directory (or "
            "--app-dir) or among the installed packages"
        ) from None
    found: Any = module
    where = module_name
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            close = difflib.get_close_matches(name, [n for n in dir(found) if not n.startswith("_")], 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise AppImportError(
                f"cannot import {name!r} from {where!r}: it has no such attribute{hint}"
            ) from None
        where += f"{':' if where == module_name else '.'}{name}"
    return found
