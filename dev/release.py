"""What a release is made of, into dist/: the source, the wheel, what it needs (an SBOM in CycloneDX's JSON,
of locks/core.txt) and the sha256 of each. `make release` calls it, with `build` and `cyclonedx-bom`
installed.

The files are the same, to the bit, whenever they are made from the same commit: times are the commit's.
Nothing is uploaded.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import uuid
import zipfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
LARGEST = 40e6  # bytes of the wheel, which holds the demo's teacher and student
INSIDE = (
    "armlet/checkpoints/tabletop-teacher/model.safetensors",
    "armlet/checkpoints/tabletop-student/model.safetensors",
    "armlet/logs/status.html",
    "armlet/evaluation/page/page.html",
)


def main() -> None:
    changed = git("status", "--porcelain")
    if changed:
        raise SystemExit(
            f"commit first: a release is of a commit, and there are changes\n{changed}"
        )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    time = git("log", "-1", "--format=%ct")
    shutil.rmtree(DIST, ignore_errors=True)
    # Both tools put the time of files where nobody says another.
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", DIST, ROOT],
        check=True,
        env=os.environ | {"SOURCE_DATE_EPOCH": time},
    )
    wheel = check_wheel()
    sbom = DIST / f"armlet-{project['version']}.cdx.json"
    sbom.write_text(json.dumps(bill(project, wheel, int(time)), indent=1, sort_keys=True) + "\n")
    lines = []
    for path in sorted(DIST.iterdir()):
        lines.append(f"{digest(path)}  {path.name}")
    (DIST / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + f"\n{DIST / 'SHA256SUMS'}\n")


def git(*words: str) -> str:
    ran = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return ran.stdout.strip()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_wheel() -> Path:
    """The wheel that was built, which holds what `armlet demo` runs, and is no larger than it may be."""
    (wheel,) = DIST.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        missing = sorted(set(INSIDE) - set(archive.namelist()))
    if missing:
        raise SystemExit(f"{wheel.name} lacks {', '.join(missing)}")
    if wheel.stat().st_size > LARGEST:
        raise SystemExit(
            f"{wheel.name} has {wheel.stat().st_size} bytes, expected {LARGEST:g} at most"
        )
    return wheel


def bill(project: dict, wheel: Path, time: int) -> dict:
    """The SBOM: what the core's lock names, with its files' hashes, by CycloneDX's own tool; and
    armlet, the wheel's hash, with what it needs. Its serial number and time are of the commit."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "sbom.json")
        command = [
            sys.executable, "-m", "cyclonedx_py", "requirements", ROOT / "locks/core.txt",
            "--output-reproducible", "--of", "JSON", "--sv", "1.6", "-o", made,
        ]  # fmt: skip
        subprocess.run(command, check=True)
        found: dict = json.loads(made.read_text())
    for each in found["components"]:
        del each["description"]  # the lock's line once more, with every hash
    reference = f"pkg:pypi/armlet@{project['version']}"
    found["metadata"]["component"] = {
        "bom-ref": reference,
        "type": "application",
        "name": "armlet",
        "version": project["version"],
        "description": project["description"],
        "licenses": [{"license": {"id": project["license"]}}],
        "purl": reference,
        "hashes": [{"alg": "SHA-256", "content": digest(wheel)}],
    }
    found["metadata"]["timestamp"] = datetime.fromtimestamp(time, UTC).isoformat()
    found["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest(wheel))}"
    # Which build of torch, the machine decides (dev/locks.py): it is named without a hash.
    pins = (ROOT / "requirements.lock").read_text()
    version = re.search(r"^torch==(\S+)$", pins, re.MULTILINE)
    assert version, "requirements.lock has a torch"
    torch = f"pkg:pypi/torch@{version[1]}"
    found["components"].append(
        {"bom-ref": torch, "type": "library", "name": "torch", "version": version[1], "purl": torch}
    )
    needs = sorted(each["bom-ref"] for each in found["components"])
    found["dependencies"] = [
        {"ref": reference, "dependsOn": needs},
        *({"ref": each} for each in needs),
    ]
    return found


if __name__ == "__main__":
    main()
