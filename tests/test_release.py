"""What a release is made of: a lock for every extra, with hashes, that fits pyproject.toml and
requirements.lock; the SBOM; what the wheel must hold."""

import hashlib
import importlib.util
import json
import re
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
# What builds of torch for GPUs bring: a lock must not choose one.
OF_GPUS = re.compile(r"^(torch|triton|nvidia-|cuda-|pytorch-triton)", re.MULTILINE)


def pins(path: Path) -> dict[str, str]:
    """Package → version, of a lock with those that it includes."""
    text = path.read_text()
    found = {}
    for included in re.findall(r"^-r (\S+)$", text, re.MULTILINE):
        found |= pins(path.with_name(included))
    for name, version in re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", text, re.MULTILINE):
        found[canonicalize_name(name)] = version
    return found


TESTED = pins(ROOT / "requirements.lock")


def test_every_extra_has_a_lock() -> None:
    # `docs` is an environment without armlet, which docs/requirements.lock is for.
    assert {path.stem for path in LOCKS} == {"core", *EXTRAS} - {"docs"}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_holds_what_is_asked_for_with_hashes(path: Path) -> None:
    found = pins(path)
    for line in PROJECT["dependencies"] + EXTRAS.get(path.stem, []):
        wanted = Requirement(line)
        if wanted.name != "torch":
            assert wanted.specifier.contains(found[canonicalize_name(wanted.name)]), line
    text = path.read_text()
    assert not OF_GPUS.search(text)
    # Every package has hashes, and nothing comes from anywhere but the registry.
    for block in re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block[:60]
        assert "@" not in block and "://" not in block
    if "the whole of it" not in text:
        for name in found.keys() & TESTED.keys():
            assert found[name] == TESTED[name], f"{name}: make lock"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"dev/{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bill_names_armlet_torch_and_every_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = script("release")

    def tool(command: list[Any], *, check: bool) -> None:
        """As CycloneDX's own answers, of one package."""
        out = Path(command[command.index("-o") + 1])
        one = {
            "bom-ref": "requirements-L4",
            "description": "line",
            "name": "numpy",
            "type": "library",
        }
        out.write_text(json.dumps({"metadata": {}, "components": [one], "bomFormat": "CycloneDX"}))

    monkeypatch.setattr(release.subprocess, "run", tool)
    wheel = tmp_path / "armlet-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    made = release.bill(PROJECT, wheel, 1_700_000_000)
    about = made["metadata"]
    assert about["component"]["hashes"][0]["content"] == hashlib.sha256(b"wheel").hexdigest()
    assert about["timestamp"] == "2023-11-14T22:13:20+00:00"
    assert [each["name"] for each in made["components"]] == ["numpy", "torch"]
    assert made["components"][1]["version"] == TESTED["torch"]
    root, *rest = made["dependencies"]
    assert root["dependsOn"] == [each["ref"] for each in rest]
    # The same wheel is the same release, whenever it is made.
    assert made == release.bill(PROJECT, wheel, 1_700_000_000)
    wheel.write_bytes(b"another")
    assert release.bill(PROJECT, wheel, 1_700_000_000)["serialNumber"] != made["serialNumber"]


def test_a_wheel_without_the_demo_or_too_large_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = script("release")
    monkeypatch.setattr(release, "DIST", tmp_path)
    wheel = tmp_path / "armlet.whl"

    def pack(names: tuple[str, ...]) -> None:
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in names:
                archive.writestr(name, b"content")

    pack(release.INSIDE)
    assert release.check_wheel() == wheel
    monkeypatch.setattr(release, "LARGEST", 10)
    with pytest.raises(SystemExit, match="expected 10 at most"):
        release.check_wheel()
    pack(release.INSIDE[1:])
    with pytest.raises(SystemExit, match=f"lacks {release.INSIDE[0]}"):
        release.check_wheel()
    for name in release.INSIDE:  # they are there to be packed
        place = ROOT / ("src" if "checkpoints" not in name else "") / name
        if "checkpoints" in name:
            place = ROOT / name.removeprefix("armlet/")
        assert place.is_file()


def test_a_library_above_the_lowest_that_is_written_down_is_named() -> None:
    matrix = script("matrix")
    frozen = "armlet @ file:///somewhere/armlet.whl\n"
    for line in PROJECT["dependencies"]:
        wanted = Requirement(line)
        (bound,) = [each.version for each in wanted.specifier]
        frozen += f"{canonicalize_name(wanted.name)}=={bound}.0\n"
    installed = matrix.versions(frozen)
    assert "armlet" not in installed
    assert matrix.above_the_bounds(installed) == {}
    installed["huggingface-hub"] = "99.0"
    found = matrix.above_the_bounds(installed)
    assert list(found) == ["huggingface_hub"] and found["huggingface_hub"][1] == "99.0"


def test_what_an_installation_showed_is_kept_for_the_same_question_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = script("matrix")
    monkeypatch.setattr(matrix, "WORK", tmp_path)
    each = matrix.Combination("3.11", "lowest")
    ran = []

    class Commands:
        """The first check ends well, the second does not."""

        def run(self, command: list[Any]) -> str:
            folder, *names = command[2:]
            ran.append(names)
            (folder / f"{names[0]}.json").write_text('{"seconds": 1}')
            if len(names) > 1:
                raise matrix.FailedError("ValueError: of the second")
            return ""

    def ask(question: str) -> list[dict[str, Any]]:
        return list(matrix.checked(each, question, ["line", "teacher"], Commands()))

    line, teacher = ask("one")
    assert line == {"line": {"seconds": 1}}
    assert teacher["teacher"]["failed"] == "ValueError: of the second"
    assert ask("one") == [line, {"teacher": {"seconds": 1}}]  # what failed is asked again
    assert ask("one") == [line, {"teacher": {"seconds": 1}}]
    assert ran == [["line", "teacher"], ["teacher"]]
    ask("another")
    assert ran[2:] == [["line", "teacher"]]


def test_what_an_error_at_importing_wants_is_looked_for_in_what_it_comes_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = script("installed")
    wanted = ["torch>=2.9", "msgpack>=1; extra == 'robot'", "torch; extra == 'dev'"]
    wanted.append('rerun-sdk>=0.23 ; extra == "rerun"')
    monkeypatch.setattr(installed.importlib.metadata, "requires", lambda name: wanted)
    assert installed.of_extras() == {"msgpack", "rerun"}
    bare = ModuleNotFoundError("No module named 'msgpack'", name="msgpack")
    assert installed.missing(bare) == "msgpack"
    spoken = ImportError("serving needs what is not installed: pip install 'armlet[socket]'")
    assert installed.missing(spoken) == "armlet[socket]"
    wrapped = ImportError("no")
    wrapped.__cause__ = bare
    assert installed.missing(wrapped) == "msgpack"
    # A fault of armlet's own, or of what must always be there.
    for name in ("armlet.nowhere", "torch.nowhere", "torch"):
        error = ModuleNotFoundError(f"No module named {name!r}", name=name)
        assert installed.missing(error) is None
