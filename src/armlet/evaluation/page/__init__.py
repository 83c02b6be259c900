"""What the web page of `armlet report` shows of a report: which rows belong together, and where each
mark of a picture stands. Knows reports; the HTML is in the templates beside these files."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import, and of use only where a page is written
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent


def templates(*folders: Path) -> "Environment":
    """The templates here, and before them those in `folders`."""
    # Here and not above: no other verb should wait until it is imported.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Strict: a field that a template misspells is an error, and not an empty place on the page.
    return Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,  # names of policies, recipes and tasks, and errors, are other people's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
