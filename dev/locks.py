"""A lock for every extra: `locks/core.txt` for armlet alone, `locks/EXTRA.txt` for what each adds; versions
of requirements.lock where it has them, and the sha256 of every file that the registry offers, for
Python 3.11 to 3.13 on every system. `make lock` calls it; it needs uv, and installs nothing.

torch is in none of them, nor what only its builds for GPUs bring: which build is meant, the machine
decides. What every build needs is said below, so that no other is looked at.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "locks"
DOCS = "docs"  # an environment without armlet, locked in docs/requirements.lock
HEAD = """\
# Made by `make lock`. Install torch first, the build for your machine; then
#     pip install --require-hashes --no-deps -r locks/{name}.txt
#     pip install --no-deps armlet
"""
UV = """\
[[dependency-metadata]]
name = "torch"
version = "{version}"
requires-dist = [
  "filelock", "typing-extensions>=4.10.0", "setuptools>=77.0.3", "sympy>=1.13.3",
  "networkx>=2.5.1", "jinja2", "fsspec>=0.8.5",
]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", default="uv", help="the program; uv if not given")
    uv = parser.parse_args().uv
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    FOLDER.mkdir(exist_ok=True)
    core = compiled(uv, None)
    write("core", core)
    for extra in project["optional-dependencies"]:
        if extra == DOCS:
            continue
        try:
            found = compiled(uv, extra)
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().split("\n")[-1]
            sys.stderr.write(f"{extra}: not with the versions of requirements.lock: {said}\n")
            write(extra, compiled(uv, extra, pinned=False), whole=True)
            continue
        added = {}
        for name, lines in found.items():
            if core.get(name) != lines:
                added[name] = lines
        # The same package in two versions could not be installed.
        twice = sorted(set(added) & set(core))
        if twice:
            raise SystemExit(f"{extra}: {', '.join(twice)} differ from those of locks/core.txt")
        write(extra, added)


def compiled(uv: str, extra: str | None, *, pinned: bool = True) -> dict[str, str]:
    """Package → its lines, of armlet with one extra. Raises CalledProcessError where that cannot be
    had in the versions of requirements.lock; not `pinned`, in any."""
    pins = (ROOT / "requirements.lock").read_text()
    version = re.search(r"^torch==(\S+)$", pins, re.MULTILINE)
    assert version, "requirements.lock has a torch"
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "uv.toml")
        settings.write_text(UV.format(version=version[1]))
        command = [
            uv, "pip", "compile", ROOT / "pyproject.toml", "--universal", "--python-version", "3.11",
            "--generate-hashes", "--config-file", settings, "--no-emit-package", "torch",
            "--no-header", "--no-annotate", "--quiet",
        ]  # fmt: skip
        constraints = Path(folder, "constraints.txt")
        constraints.write_text(pins if pinned else version[0])
        command += ["--constraint", constraints]
        if extra is not None:
            command += ["--extra", extra]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = {}
    # Nothing here runs in a browser: without that system, cores and extras say the same of a package.
    said = said.replace(" ; sys_platform != 'emscripten'", "")
    for block in re.findall(r"^\S.*\n(?:[ ]+.*\n)*", said, re.MULTILINE):
        if not block.startswith("#") and "emscripten" not in block:
            name = block.partition("==")[0]
            found[name] = found.get(name, "") + block  # one a marker
    return found


def write(name: str, packages: dict[str, str], *, whole: bool = False) -> None:
    """`whole`: all that is installed, and not what is added to the core."""
    text = HEAD.format(name=name)
    if whole:
        text += "# Not with the versions of requirements.lock: this is the whole of it.\n"
    elif name != "core":
        text += "-r core.txt\n"
    (FOLDER / f"{name}.txt").write_text(text + "".join(packages.values()))


if __name__ == "__main__":
    main()
