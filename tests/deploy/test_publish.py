"""What is published is what the folder holds, with a card and its results, in one commit; what may
not be published is refused by name before anything is sent. Against a hub on this machine."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from data.hub_server import Hub, files_of, serve
from tiny import make_policy

from armlet.__main__ import main as command_line
from armlet.data.download import HubError
from armlet.deploy.publishing import machine_paths
from armlet.policies.checkpoint import load_policy, policy_fingerprint, save_policy
from armlet.publish import main

RECIPE = {"name": "tiny", "teacher": "hf:anna/teacher@v1", "episodes": "hf:anna/set"}
PROVENANCE = {"recipe": RECIPE, "question": {"data": "0123456789abcdef"}}
LARGE = 4000  # bytes: weights of these students go by Git LFS, and their words do not


@pytest.fixture
def student(tmp_path) -> Path:
    save_policy(make_policy(), tmp_path / "student", provenance=PROVENANCE)
    return tmp_path / "student"


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """A hub to which anna may write, and this process set up to ask it and nobody else."""
    with serve() as served:
        served.large = LARGE
        served.accounts = {"annas": {"anna"}}
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            served.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # What goes up by Xet needs its own servers; without it the library uses Git LFS.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "annas")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        huggingface_hub.close_session()
        yield served
        huggingface_hub.close_session()


def head_of(card: bytes) -> dict:
    found = re.match(rb"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1])


def there(hub: Hub, name: str = "anna/arm") -> dict[str, bytes]:
    repository = hub.repositories[f"models/{name}"]
    return repository.commits[repository.revisions["main"]]


def report_about(fingerprint: str, path: Path) -> Path:
    """A report of two policies, of which the second is this one."""

    def row(name: str, successes: int, own: str) -> dict:
        return {
            "name": name,
            "successes": successes,
            "episodes": 100,
            "ci95": [successes / 100 - 0.05, min(1.0, successes / 100 + 0.04)],
            "mean_steps": 11.1,
            "latency_ms": {"policy": {"p50": 5.4, "p95": 6.0, "p99": 7.0}, "device": "cpu"},
            "ms_per_second_of_motion": 27.0,
            "flops": {"total": 2.0, "backbone": 1.0},
            "params": {"total": 1917720, "backbone": 1.0},
            "keep_ratio": 1.0,
            "routing": {"activation": [1.0], "layers": [0]},
            "gripper_toggles": None,
            "seconds_to_success": None,
            "by_split": {"seen": {}},
            "fingerprint": own,
        }

    pair = {
        "a": "student",
        "b": "teacher",
        "n": 100,
        "difference": -0.02,
        "ci95": [-0.05, 0.01],
        "mcnemar_p": 0.5,
        "non_inferior_3pp": False,
    }
    report = {
        "version": 2,
        "policies": [row("teacher", 99, "f" * 16), row("student", 97, fingerprint)],
        "pairs": [pair],
        "fingerprint": {"benchmark": {"benchmark": "tabletop"}},
    }
    path.mkdir()
    (path / "report.json").write_text(json.dumps(report))
    return path


def test_a_student_is_published_whole_with_its_card(hub: Hub, student: Path) -> None:
    address = main(student, "hf:anna/arm", license="apache-2.0", tags=("mine",))
    files = there(hub)
    assert address.startswith(f"{hub.address}/anna/arm/commit/")
    for name, content in files_of(student).items():
        assert files[name] == content
    assert set(files) == {*files_of(student), "README.md", ".gitattributes"}
    head = head_of(files["README.md"])
    assert (head["library_name"], head["pipeline_tag"]) == ("armlet", "robotics")
    assert (head["base_model"], head["datasets"]) == ("anna/teacher", ["anna/set"])
    assert {"armlet", "robotics", "vla", "mine"} <= set(head["tags"])
    assert head["license"] == "apache-2.0" and "model-index" not in head
    assert "0123456789abcdef" in files["README.md"].decode()
    # One commit beside the hub's own first: never half a policy.
    assert len(hub.repositories["models/anna/arm"].commits) == 2


def test_a_card_says_what_was_changed_since_it_was_trained(hub: Hub, tmp_path) -> None:
    of = {"policy": "hf:anna/teacher", "fingerprint": "f"}
    changes = [{**of, "execute": 6}, {**of, "steps": 1, "execute": 8}]
    save_policy(make_policy(), tmp_path / "student", provenance={"shortened": changes})
    main(tmp_path / "student", "hf:anna/arm")
    said = (
        "Changed since, untrained: it decides in 1 denoising step, it looks again after 8 actions."
    )
    assert said in there(hub)["README.md"].decode()


def test_what_went_up_is_read_by_name(hub: Hub, student: Path) -> None:
    main(student, "hf:anna/arm")
    assert policy_fingerprint("hf:anna/arm") == policy_fingerprint(student)
    assert load_policy("hf:anna/arm").chunk == 3


def test_as_lerobot_keeps_it(hub: Hub, student: Path) -> None:
    main(student, "hf:anna/arm", lerobot=True)
    files = there(hub)
    assert head_of(files["README.md"])["library_name"] == "lerobot"
    assert json.loads(files["config.json"])["type"] == "armlet"
    assert {"policy_preprocessor.json", "distill_manifest.json"} <= set(files)
    assert b"lerobot-eval --policy.path=anna/arm" in files["README.md"]
    assert policy_fingerprint("hf:anna/arm") == policy_fingerprint(student)


def test_results_beside_the_teacher(hub: Hub, student: Path, tmp_path) -> None:
    report = report_about(policy_fingerprint(student), tmp_path / "evaluation")
    main(student, "hf:anna/arm", report=report, results_for="anna/benchmark:seen")
    files = there(hub)
    card = files["README.md"].decode()
    assert "| teacher | 99/100 = 99.0 %" in card and "| student | 97/100 = 97.0 %" in card
    assert "student − teacher: -2.0 pp" in card
    assert json.loads(files["evaluation/report.json"])["policies"][1]["successes"] == 97
    (entry,) = yaml.safe_load(files[".eval_results/benchmark.yaml"])
    # The hub's own reader of such files takes it.
    (read,) = huggingface_hub.parse_eval_result_entries([entry])
    assert (read.dataset_id, read.task_id, read.value) == ("anna/benchmark", "seen", 97.0)
    assert "97 of 100" in entry["notes"] and "92.0 to 100.0 %" in entry["notes"]
    (index,) = head_of(files["README.md"])["model-index"]
    assert index["results"][0]["metrics"][0]["value"] == 97.0


def test_a_report_about_others_is_refused(hub: Hub, student: Path, tmp_path) -> None:
    report = report_about("0" * 16, tmp_path / "evaluation")
    with pytest.raises(ValueError, match="is about other policies than"):
        main(student, "hf:anna/arm", report=report)
    assert not hub.repositories


def test_a_dry_run_says_all_and_sends_nothing(hub: Hub, student: Path, capsys) -> None:
    said = main(student, "hf:anna/arm", private=True, dry_run=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert name in said
    assert "you alone may see it" in said and "library_name: armlet" in said
    assert hub.asked == []
    told = capsys.readouterr().err
    assert "--license" in told and "--report" in told


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("optimiser.pt", b"\x80\x04x", "optimiser.pt (3 bytes, a pickle can run what it likes)"),
        ("weights.bin", b"x", "a pickle can run what it likes"),
        ("film.mp4", b"x" * 200_000, "film.mp4 (0.2 MB)"),
        ("inner/config.json", b"{}", "inner/config.json"),
        ("model.onnx", b"x", "model.onnx"),
    ],
)
def test_what_is_no_part_of_a_policy_is_refused(
    hub: Hub, student: Path, name: str, content: bytes, what: str
) -> None:
    (student / name).parent.mkdir(exist_ok=True)
    (student / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(what)):
        main(student, "hf:anna/arm")
    assert not hub.repositories
    main(student, "hf:anna/arm", leave_out=(name,))
    assert name not in there(hub)


def test_a_folder_or_a_text_that_is_not_there_is_named(hub: Hub, student: Path, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        main(tmp_path / "nowhere", "hf:anna/arm")
    with pytest.raises(ValueError, match=r"--text .*nowhere\.md.*expected a file of Markdown"):
        main(student, "hf:anna/arm", text=tmp_path / "nowhere.md")
    for head, says in (
        ({"base_model": "hf:anna/teacher"}, "--base-model 'hf:anna/teacher'.*expected user/name"),
        ({"base_model": "teacher"}, "expected user/name"),
        ({"license": "Apache 2.0"}, "--license 'Apache 2.0'.*expected apache-2.0"),
        ({"tags": ("arm", " ")}, "--tags ' ' is no tag"),
    ):
        with pytest.raises(ValueError, match=says):
            main(student, "hf:anna/arm", **head)
    assert not hub.repositories


def test_paths_of_this_machine_stay_here(hub: Hub, tmp_path) -> None:
    home = "/" + "home/anna/data/teacher"
    recipe = {**RECIPE, "teacher": home, "out": f"run with --out {home}/x"}
    save_policy(make_policy(), tmp_path / "student", provenance={"recipe": recipe})
    with pytest.raises(ValueError, match=re.escape("provenance.recipe.teacher")):
        main(tmp_path / "student", "hf:anna/arm")
    assert not hub.repositories
    main(tmp_path / "student", "hf:anna/arm", shorten_paths=True)
    assert all(b"home/anna" not in content for content in there(hub).values())
    said = json.loads(there(hub)["config.json"])["provenance"]["recipe"]
    assert (said["teacher"], said["out"]) == ("teacher", "run with --out x")
    # The policy is the same: what was shortened decides no answer.
    assert policy_fingerprint("hf:anna/arm") == policy_fingerprint(tmp_path / "student")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/" + "home/anna/x", True),
        ("see file:///x/y", True),
        ("~/" + "data/anna/x", True),
        (r"C:\Users\anna", True),
        ("hf:user/name@v1", False),
        ("https://hub.org/user/data/x", False),
        ("out/data/tmp/x", False),
        ("and/or", False),
        ("0.5/1", False),
    ],
)
def test_which_texts_are_paths_of_a_machine(text: str, found: bool) -> None:
    assert bool(list(machine_paths({"a": [text]}))) is found


def test_who_may_not_write(hub: Hub, student: Path, monkeypatch) -> None:
    with pytest.raises(HubError, match=r"may not write to what belongs to bert \(403\)"):
        main(student, "hf:bert/arm")
    monkeypatch.setenv("HF_TOKEN", "nobodys")
    with pytest.raises(HubError, match=r"does not accept the token in use \(401\)"):
        main(student, "hf:anna/arm")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"publishing needs an account|asks who you are"):
        main(student, "hf:anna/arm")
    assert not hub.repositories


def test_somebody_elses_model_is_left_as_it_is(hub: Hub, student: Path) -> None:
    hub.repository("models", "anna/arm").commit({"pytorch_model.bin": b"x", "README.md": b"mine"})
    with pytest.raises(ValueError, match="which armlet did not publish"):
        main(student, "hf:anna/arm")
    assert set(there(hub)) == {"pytorch_model.bin", "README.md"}


def test_published_again_it_is_replaced_and_what_is_old_goes(hub: Hub, student: Path) -> None:
    main(student, "hf:anna/arm", lerobot=True)
    first = there(hub)
    assert main(student, "hf:anna/arm", lerobot=True).endswith(
        hub.repositories["models/anna/arm"].revisions["main"]
    )
    assert there(hub) == first and len(hub.repositories["models/anna/arm"].commits) == 2
    main(student, "hf:anna/arm")  # in armlet's own layout
    assert set(there(hub)) == {*files_of(student), "README.md", ".gitattributes"}
    # The same bytes are sent once.
    assert len(hub.sent) == len(set(hub.sent))


def test_private_is_private(hub: Hub, student: Path) -> None:
    main(student, "hf:anna/arm", private=True)
    assert hub.repositories["models/anna/arm"].private
    main(student, "hf:anna/seen")
    assert not hub.repositories["models/anna/seen"].private
    before = there(hub, "anna/seen")
    with pytest.raises(ValueError, match="everybody may see it"):
        main(student, "hf:anna/seen", private=True)
    assert there(hub, "anna/seen") == before


def test_who_commits_meanwhile_is_not_written_over(hub: Hub, student: Path) -> None:
    main(student, "hf:anna/arm")
    repository = hub.repositories["models/anna/arm"]

    def meanwhile(path: str) -> None:
        if path.endswith("/preupload/main"):
            repository.commit({**there(hub), "notes.md": b"another's"})

    hub.answer = meanwhile  # type: ignore[assignment]  # answers nothing itself
    with torch_changed(student), pytest.raises(HubError, match="somebody committed"):
        main(student, "hf:anna/arm")
    assert there(hub)["notes.md"] == b"another's"


def torch_changed(student: Path):
    """The same folder with another policy in it, so that there is something to send."""
    import contextlib

    save_policy(make_policy(depth=3), student, provenance=PROVENANCE)
    return contextlib.nullcontext()


def test_a_hub_that_fails_leaves_nothing_half(hub: Hub, student: Path) -> None:
    hub.fails = {"/commit/main"}
    with pytest.raises(HubError, match=r"failed \(500.*the same command goes on"):
        main(student, "hf:anna/arm")
    assert set(there(hub)) == {".gitattributes"}
    sent = list(hub.sent)
    assert sent
    hub.fails = set()
    main(student, "hf:anna/arm")
    assert hub.sent == sent  # what had gone up is not sent again
    assert there(hub)["model.safetensors"] == (student / "model.safetensors").read_bytes()


def test_killed_it_goes_on(hub: Hub, student: Path, tmp_path) -> None:
    """A process that dies between the weights and the commit."""
    monkey = (
        "import huggingface_hub.constants as c; c.HF_HUB_DISABLE_XET = True\n"
        f"from armlet.publish import main; main(__import__('pathlib').Path({str(student)!r}), 'hf:anna/arm')"
    )
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": "annas",
        "HF_HOME": str(tmp_path / "home"),
        "NO_PROXY": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
    }
    reached: list[str] = []

    def kill(path: str) -> None:
        if path.endswith("/commit/main") and not reached:
            reached.append(path)
            process.send_signal(signal.SIGKILL)
            process.wait()

    hub.answer = kill  # type: ignore[assignment]
    process = subprocess.Popen([sys.executable, "-c", monkey], env=environment)
    process.wait(timeout=240)
    assert reached and process.returncode == -signal.SIGKILL
    # The request may have been whole when its sender died; the repository is, either way.
    for _ in range(100):
        time.sleep(0)
    hub.answer = lambda path: None
    sent = list(hub.sent)
    main(student, "hf:anna/arm")
    assert hub.sent == sent
    assert policy_fingerprint("hf:anna/arm") == policy_fingerprint(student)


@pytest.mark.parametrize("name", ["anna/arm", "hf:anna/arm@v1", "hf:anna/arm/sub", "hf:anna"])
def test_where_nothing_can_go(name: str, student: Path) -> None:
    with pytest.raises(ValueError, match="expected hf:"):
        main(student, name, dry_run=True)


def test_an_exported_folder(hub: Hub, tmp_path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    said = {
        "version": 1,
        "policy": {
            "fingerprint": "a" * 16,
            "folder": "student",
            "kind": "a policy of type 'vla'",
        },
        "graphs": [{"budget": None, "gates": [1], "files": {"model.onnx": 7}}],
        "runtime": "onnx",
        "precision": "int8",
    }
    (folder / "exported.json").write_text(json.dumps(said))
    (folder / "requirements.txt").write_text("onnxruntime==1.32.0\n")
    (folder / "model.onnx").write_bytes(b"\x08\x0agraph")
    (folder / "tokenizer.json").write_text("{}")
    main(folder, "hf:anna/exported")
    files = there(hub, "anna/exported")
    assert files["model.onnx"] == b"\x08\x0agraph"
    head = head_of(files["README.md"])
    assert head["library_name"] == "armlet" and {"onnx", "int8", "vla"} <= set(head["tags"])
    assert b"pip install -r policy/requirements.txt" in files["README.md"]
    (folder / "model.onnx").write_bytes(b"\x08\x0agr")
    with pytest.raises(ValueError, match="has 4 bytes, expected 7"):
        main(folder, "hf:anna/exported")
    told = b"at /" + b"home/anna/armlet/vla.py line 3"
    said["graphs"][0]["files"]["model.onnx"] = len(told)
    (folder / "exported.json").write_text(json.dumps(said))
    (folder / "model.onnx").write_bytes(told)
    with pytest.raises(ValueError, match="a place on the machine that exported it"):
        main(folder, "hf:anna/exported")


def test_a_checkpoint_of_another_project_is_its_makers(hub: Hub) -> None:
    golden = Path(__file__).parents[1] / "pretrained/golden/act/plain/pretrained_model"
    with pytest.raises(ValueError, match="its makers publish"):
        main(golden, "hf:anna/act")


def test_from_the_command_line(hub: Hub, student: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        sys, "argv", ["armlet", "publish", str(student), "hf:anna/arm", "--dry-run"]
    )
    command_line()
    assert capsys.readouterr().out.endswith("nothing was sent\n")
