"""Import strings lead to objects, or to a message that says how far they got."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from trio_ws_server.errors import AppImportError
from trio_ws_server.importer import import_from_string

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = "importer_case"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a package that can be imported, and forget it afterwards."""
    directory = tmp_path / PACKAGE
    directory.mkdir()
    (directory / "__init__.py").write_text("")
    (directory / "main.py").write_text("class Chat:\n    application = 'the application'\n_hidden = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return directory


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("path", ["Chat.application", "Chat"])
def test_an_import_string_leads_to_the_object_that_it_names(path: str) -> None:
    found = import_from_string(f"{PACKAGE}.main:{path}")
    assert getattr(found, "application", found) == "the application"


@pytest.mark.parametrize(
    "import_string", ["", ":", "a", "a.b", "a:", ":a", ".a:b", "a.:b", "a..b:c", "a:b:c", "a:.b", "a/b.py:c"]
)
def test_a_string_of_another_form_is_an_error_that_says_the_form(import_string: str) -> None:
    with pytest.raises(AppImportError, match=r"must have the form \"module:attribute\", such as") as error:
        import_from_string(import_string)
    assert repr(import_string) in str(error.value)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("importer_other", "importer_other"),
        ("importer_other.main", "importer_other"),
        (f"{PACKAGE}.other", f"{PACKAGE}.other"),
        (f"{PACKAGE}.main.other", f"{PACKAGE}.main.other"),
    ],
)
def test_a_module_that_is_not_there_is_an_error_that_names_what_is_missing(module: str, missing: str) -> None:
    with pytest.raises(AppImportError) as error:
        import_from_string(f"{module}:app")
    assert str(error.value).startswith(f"cannot import module {module!r}: there is no {missing!r} in ")
    assert error.value.__suppress_context__


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Cat", f"cannot import 'Cat' from '{PACKAGE}.main': it has no such attribute; did you mean 'Chat'?"),
        ("Chat.app", f"cannot import 'app' from '{PACKAGE}.main:Chat': it has no such attribute"),
        ("hidden", f"cannot import 'hidden' from '{PACKAGE}.main': it has no such attribute"),
        (
            "Chat.nothing.at.all",
            f"cannot import 'nothing' from '{PACKAGE}.main:Chat': it has no such attribute",
        ),
        (
            "Chat.applicatoin",
            f"cannot import 'applicatoin' from '{PACKAGE}.main:Chat': it has no such attribute; "
            "did you mean 'application'?",
        ),
    ],
)
def test_an_attribute_that_is_not_there_is_an_error_that_suggests_what_is(path: str, message: str) -> None:
    with pytest.raises(AppImportError) as error:
        import_from_string(f"{PACKAGE}.main:{path}")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("source", "exception"),
    [
        ("import importer_missing", ModuleNotFoundError),
        (f"import {PACKAGE}.missing", ModuleNotFoundError),
        ("from os import nothing_of_this_name", ImportError),
        ("raise ModuleNotFoundError", ModuleNotFoundError),
        ("1 / 0", ZeroDivisionError),
        ("def", SyntaxError),
        ("raise SystemExit(4)", SystemExit),
    ],
)
def test_what_the_module_itself_raises_comes_out_as_it_is(
    package: Path, source: str, exception: type[BaseException]
) -> None:
    (package / "broken.py").write_text(source)
    with pytest.raises(exception):
        import_from_string(f"{PACKAGE}.broken:app")


def test_a_file_name_is_told_from_a_module() -> None:
    with pytest.raises(AppImportError, match=r"named without \.py; did you mean 'app:main'\?"):
        import_from_string("app.py:main")
