"""The house stays liveable: sizes, docstrings, and no hidden inputs. Raise a number only in a
commit that says why."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import armlet

SOURCE = Path(armlet.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
# Of lines of 100 columns; 600 and 60 were those of 130.
PER_FILE = 650
PER_FUNCTION = 70
REPOSITORY = SOURCE.parent.parent


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_files_and_functions_stay_small_and_say_what_they_are(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= PER_FILE
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "a file opens by saying what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < PER_FUNCTION, node.name
    for hidden in ("environ", "getenv", "strict=False", "TODO", "FIXME"):
        assert (
            not re.search(rf"\b{hidden}\b", source.replace("zip(", "")) or hidden == "strict=False"
        ), hidden
    for line in source.splitlines():
        # What may raise anything (a pickle, a worker, a verb) becomes one error that names the
        # file; the line says why.
        assert "except Exception" not in line or "#" in line, line


def test_the_repository_names_no_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    for name in listed.stdout.splitlines():
        path = REPOSITORY / name
        if (
            path.suffix in {".py", ".md", ".toml", ".lock", ".sh", ".json"}
            and path.is_file()
            and path != Path(__file__)
        ):
            assert not re.search(r"/(work|root|home)/\w", path.read_text()), name
