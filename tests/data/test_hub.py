"""Names on the hub: what is read by name is what the folder holds, to the bit; what was fetched is
not fetched again; a name stands for a
commit; and what the hub refuses is said in a line. Against a server on this machine, over HTTP."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hub_server import Hub, files_of, serve
from pretrained.seeded import checkpoint
from tiny import make_policy, tiny_recipe

from armlet import collect, distil, inspect, teach
from armlet.__main__ import main
from armlet.data import download
from armlet.data import hub as names
from armlet.data.download import HubError
from armlet.data.episodes import EpisodeDataset, EpisodeFrames, Features
from armlet.data.files import FullDiskError
from armlet.data.hub import local_folder, pinned
from armlet.data.hub_name import Name
from armlet.data.language import read_persistent, remark, write_persistent
from armlet.data.layout import Columns
from armlet.data.writer import EpisodeWriter
from armlet.evaluation.settings import contenders
from armlet.policies.checkpoint import load_policy, policy_fingerprint, read_provenance, save_policy
from armlet.policies.pretrained import kinds
from armlet.recipe import at_hand

GOLDEN = Path(__file__).parent / "golden"
SET = GOLDEN / "d22_image_key"
MORE = {
    "README.md": b"# a set",
    "media/clip.gif": b"GIF89a",
    ".gitattributes": b"*",
    "rlds/train.tfrecord": b"x",
    "expected.npz": b"y",
}
COMMIT = re.compile("[0-9a-f]{40}")


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """A hub, and this process set up to ask it and nobody else. Nothing waits between tries."""
    with serve() as served:
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
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.setattr("armlet.data.digests.HOME", tmp_path / "home")
        monkeypatch.setattr(download, "_said", set())
        huggingface_hub.close_session()
        yield served


def dataset(hub: Hub, source: Path = SET, name: str = "anna/arm") -> str:
    """A data set on the hub, with what else people keep beside one; the commit."""
    files = {
        path: content
        for path, content in files_of(source).items()
        if not path.startswith("expected")
    }
    return hub.repository("datasets", name).commit(MORE | files)


def changed(
    hub: Hub,
    file: str,
    content: bytes,
    *revisions: str,
    kind: str = "datasets",
    name: str = "anna/arm",
) -> str:
    repository = hub.repository(kind, name)
    return repository.commit(
        repository.commits[repository.revisions["main"]] | {file: content}, *revisions
    )


def columns(source: Path) -> Columns:
    features = json.loads((source / "meta/info.json").read_text())["features"]
    state = next((name for name in ("observation.state", "state") if name in features), None)
    return Columns(state, "action" if "action" in features else "actions")


@pytest.mark.parametrize("source", sorted(GOLDEN.glob("d*")), ids=lambda path: path.name)
def test_a_data_set_by_name_is_its_folder(source: Path, hub: Hub, tmp_path, capsys) -> None:
    dataset(hub, source)
    shutil.copytree(source, tmp_path / "copy")
    here, there = (
        EpisodeDataset(tmp_path / "copy", columns(source)),
        EpisodeDataset("hf:anna/arm", columns(source)),
    )
    assert (
        there.fingerprint == here.fingerprint
        and there.tasks == here.tasks
        and there.episodes == here.episodes
    )
    assert there.cameras == here.cameras
    for name, values in here.columns().items():
        np.testing.assert_array_equal(there.columns()[name], values)
    for camera in here.cameras:
        np.testing.assert_array_equal(there.all_images(camera), here.all_images(camera))
    fetched = set(files_of(there.root))
    assert fetched == {path for path in files_of(source) if not path.startswith("expected")}, (
        "and nothing was written there"
    )
    said = capsys.readouterr().err.replace("\n", " ")
    assert re.search(
        r"hf:anna/arm: fetching \d+ files, 0\.\d MB, of commit [0-9a-f]{12} .*hf:anna/arm: fetched to",
        said,
    )


def test_files_may_lie_where_only_the_metadata_say(hub: Hub, tmp_path) -> None:
    """`data_path` and `video_path` are the data set's own; a table may name pictures anywhere."""
    info = {"data_path": "rows [1]/{chunk_index}.parquet", "video_path": "films/{video_key}.mp4"}
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    files = dict.fromkeys(
        [
            "rows [1]/0.parquet",
            "films/eye.mp4",
            "other/0.parquet",
            "shots/0.png",
            "data/x",
            "images/a/b.png",
        ],
        1,
    )
    assert download.needed("dataset", files, tmp_path) == [
        "rows [1]/0.parquet",
        "films/eye.mp4",
        "data/x",
        "images/a/b.png",
    ]
    (tmp_path / "meta/info.json").write_text(
        json.dumps(info | {"features": {"eye": {"dtype": "image"}}})
    )
    assert "shots/0.png" in download.needed("dataset", files, tmp_path)


def test_a_policy_by_name_is_its_folder(hub: Hub, tmp_path) -> None:
    policy = make_policy(depth=2)
    save_policy(policy, tmp_path / "p", provenance={"data": "d"})
    files = files_of(tmp_path / "p")
    more = {
        "README.md": b"#",
        "pytorch_model.bin": b"\x80",
        "optimizer.pt": b"\x80",
        "checkpoints/1/model.safetensors": b"x",
    }
    hub.repository("models", "anna/touch").commit(files | more)
    loaded = load_policy("hf:anna/touch")
    assert hub.fetched == sorted(files), "no pickle, and no other checkpoint"
    for key, value in policy.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[key].numpy(), value.numpy())
    assert policy_fingerprint("hf:anna/touch") == policy_fingerprint(tmp_path / "p")
    assert read_provenance("hf:anna/touch") == {"data": "d"}


def test_a_checkpoint_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    files = files_of(checkpoint("act", "plain", tmp_path) / "pretrained_model")
    hub.repository("models", "anna/act").commit(files)
    name = "hf:anna/act"
    with pytest.raises(OSError, match=r"no data set of this name.*armlet inspect hf:anna/act --po"):
        inspect.main(name)
    text = inspect.main(name, policy=True)
    assert "a checkpoint of kind act" in text and text.endswith(f"--teacher {name}")
    assert "nothing was written into the hub's cache; give a folder with --out" in text
    text = inspect.main(name, policy=True, out=tmp_path / "said")
    file = tmp_path / "said" / "policy.toml"
    assert tomllib.loads(file.read_text())["checkpoint"] == name
    assert kinds.find(file)[0].kind == "act" and text.endswith(f"--teacher {file}")


def test_a_folder_in_a_repository(hub: Hub, tmp_path) -> None:
    save_policy(make_policy(depth=2), tmp_path / "p")
    inside = {
        f"runs/last [1]/{name}": content for name, content in files_of(tmp_path / "p").items()
    }
    hub.repository("models", "anna/touch").commit(
        inside | {"README.md": b"#", "runs/config.json": b"{}"}, "main", "more/work"
    )
    found = local_folder("hf:anna/touch/runs/last [1]@more/work", kind="model")
    assert policy_fingerprint(found) == policy_fingerprint(
        tmp_path / "p"
    ) and hub.fetched == sorted(inside)
    with pytest.raises(
        HubError,
        match=r"no config\.json; there is one in hf:anna/touch/runs, hf:anna/touch/runs/last \[1\]$",
    ):
        local_folder("hf:anna/touch", kind="model")
    with pytest.raises(
        HubError,
        match=r"there is no folder 'run' in anna/touch; there is one in hf:anna/touch/runs@more/work,",
    ):
        local_folder("hf:anna/touch/run@more/work", kind="model")
    hub.repository("datasets", "anna/rlds").commit({"README.md": b"#", "rlds/a.tfrecord": b"x"})
    with pytest.raises(
        HubError,
        match=r"is no LeRobot data set: it has no meta/info\.json; it has README\.md, rlds$",
    ):
        local_folder("hf:anna/rlds", kind="dataset")


def test_what_is_here_is_not_fetched_again(hub: Hub) -> None:
    commit = dataset(hub)
    place = local_folder("hf:anna/arm", kind="dataset")
    assert place.name == commit and "README.md" not in hub.fetched
    assert local_folder("hf:anna/arm", kind="dataset") == place
    assert [path for _, path, _ in hub.asked] == ["/api/datasets/anna/arm/revision/main"], (
        "whether it has moved, and nothing else"
    )
    hub.asked.clear()
    assert pinned("hf:anna/arm", kind="dataset") == Path(f"hf:anna/arm@{commit}")
    hub.asked.clear()
    assert local_folder(f"hf:anna/arm@{commit}", kind="dataset") == place
    assert (
        pinned(f"hf:anna/arm@{commit}", kind="dataset") == Path(f"hf:anna/arm@{commit}")
        and hub.asked == []
    )


def test_a_branch_that_moved_is_other_data(hub: Hub) -> None:
    first = dataset(hub)
    hub.repository("datasets", "anna/arm").revisions["v1"] = first
    before = EpisodeDataset("hf:anna/arm").fingerprint
    hub.asked.clear()
    second = changed(
        hub, "meta/tasks.parquet", files_of(GOLDEN / "d06_task_changes")["meta/tasks.parquet"]
    )
    moved = local_folder("hf:anna/arm", kind="dataset")
    assert moved.name == second and (moved / "meta/tasks.parquet").stat().st_size
    assert hub.fetched == ["meta/tasks.parquet"], "what did not change is not fetched again"
    assert EpisodeDataset("hf:anna/arm").fingerprint != before
    for pin in (f"hf:anna/arm@{first}", "hf:anna/arm@v1"):
        assert EpisodeDataset(pin).fingerprint == before, pin
    changed(hub, "README.md", b"# other words")
    assert EpisodeDataset("hf:anna/arm").fingerprint != before, "the branch, still moved"


# --- what the hub refuses
# ----------------------------------------------------------------------------------------


REFUSALS = {
    "hf:anna/arms": r"no data set of this name on 127\.0\.0\.1:\d+ that everybody may see; check the name, or if it is private, log in",
    "hf:anna/touch": r"no data set of this name on 127\.0\.0\.1:\d+, but a policy; were two options confused",
    "hf:anna/secret": r"check the name, or if it is private, log in with `hf auth login`, or set HF_TOKEN$",
    "hf:anna/gated": r"its owner decides who may read .* at http://127\.0\.0\.1:\d+/datasets/anna/gated, and log in",
    "hf:anna/arm@v9": r"there is no revision 'v9'; there are main, and commits$",
    "hf:anna/odd": r"refuses it \(418\)$",
    "hf:anna/forbidden": r"refuses it \(403\): the token in use may not read it; log in",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_hub_refuses_is_said_in_a_line(name: str, hub: Hub) -> None:
    dataset(hub)
    hub.repository("models", "anna/touch").commit({"config.json": b"{}"})
    for other in ("anna/secret", "anna/gated"):
        dataset(hub, name=other)
        hub.repository("datasets", other).token = "right"
    hub.repository("datasets", "anna/gated").gated = True
    codes = {"anna/odd": 418, "anna/forbidden": 403}
    hub.answer = lambda path: next(
        ((code, {}, b"no") for repo, code in codes.items() if repo in path), None
    )
    with pytest.raises(HubError, match=REFUSALS[name]) as raised:
        EpisodeDataset(name)
    assert "\n" not in str(raised.value) and str(raised.value).startswith(f"{name}: ")


@pytest.mark.parametrize("where", ["in the environment", "kept by `hf auth login`"])
def test_a_token_opens_what_is_private_and_is_never_shown(
    where: str, hub: Hub, monkeypatch, tmp_path, capfd
) -> None:
    def log_in(token: str) -> None:
        if where == "in the environment":
            monkeypatch.setenv("HF_TOKEN", token)
        else:
            (tmp_path / "token").write_text(token)

    dataset(hub)
    hub.repository("datasets", "anna/arm").token = "right"
    said = []
    for token, match in {
        "stale": r"does not accept the token in use \(401\); log in",
        "wrong": "the token in use may not read it",
    }.items():
        log_in(token)
        with pytest.raises(HubError, match=match) as raised:
            EpisodeDataset("hf:anna/arm")
        said.append(str(raised.value))
    log_in("right")
    data = EpisodeDataset("hf:anna/arm")
    assert len(data) == 7
    seen = {(path.startswith("/large/"), who) for _, path, who in hub.asked}
    assert seen == {
        (False, "Bearer stale"),
        (False, "Bearer wrong"),
        (False, "Bearer right"),
        (True, ""),
    }, "another host sees none"
    said += capfd.readouterr()
    assert not any(token in text for token in ("stale", "wrong", "right") for text in said)


def test_what_was_taken_back_is_still_had_by_its_commit(hub: Hub) -> None:
    commit = dataset(hub)
    before = EpisodeDataset("hf:anna/arm").fingerprint
    hub.repositories.clear()
    with pytest.raises(
        HubError,
        match=r"\. What was fetched before is here, and is used without asking as (hf:anna/arm@\w{40})$",
    ) as raised:
        EpisodeDataset("hf:anna/arm")
    by_commit = str(raised.value).split()[-1]
    assert by_commit == f"hf:anna/arm@{commit}" and EpisodeDataset(by_commit).fingerprint == before


MALFORMED = [
    "hf:arm",
    "hf:anna",
    "hf://anna/arm",
    "hf:anna/arm@",
    "hf:anna/a--b",
    "hf:-anna/arm",
    "hf:anna/arm/../x",
    "hf:anna/arm@../../x",
]


@pytest.mark.parametrize("name", MALFORMED)
def test_a_name_that_is_none(name: str, hub: Hub) -> None:
    with pytest.raises(ValueError, match="expected hf:user/name") as raised:
        EpisodeDataset(name)
    assert "\n" not in str(raised.value) and hub.asked == []


def test_names_are_taken_apart(tmp_path, monkeypatch) -> None:
    assert names.parse("hf:a/b/c/d@refs/pr/1") == Name(
        "a/b", "c/d", "refs/pr/1"
    ) and not names.is_name("a/hf:b/c")
    for text in ("hf:a/b", "hf:a/b/c", "hf:a/b@v2.1", f"hf:a/b/c@{'0' * 40}"):
        assert str(names.parse(Path(text))) == text
    assert (
        names.parse("hf:a/b@" + "0" * 40).is_pinned
        and not names.parse("hf:a/b@" + "0" * 39).is_pinned
    )
    assert names.without_revision(Path("hf:a/b/c@x/y")) == Path(
        "hf:a/b/c"
    ) and names.without_revision(Path("a@b")) == Path("a@b")
    with pytest.raises(
        ValueError, match=r"leave out 'datasets', the option says which kind it is: hf:anna/arm$"
    ):
        names.parse("hf:datasets/anna/arm")
    monkeypatch.chdir(tmp_path)
    Path("hf:anna/arm").mkdir(parents=True)
    whole = re.escape(str(tmp_path / "hf:anna/arm"))
    with pytest.raises(
        ValueError,
        match=rf"a folder here is called so too: rename the folder, or give its whole path, {whole}$",
    ):
        names.parse("hf:anna/arm")
    assert local_folder(tmp_path / "hf:anna/arm", kind="dataset") == tmp_path / "hf:anna/arm"


# --- without network, and half way
# -------------------------------------------------------------------------------


def off(hub: Hub, monkeypatch, how: str) -> str:
    """No asking from here on; what is said of that."""
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        return "HF_HUB_OFFLINE is set"
    if how == "no server":
        hub.stop()
        huggingface_hub.close_session()  # a connection that is open is still answered
        return r"127\.0\.0\.1:\d+ cannot be reached \(ConnectError\)"
    hub.answer = lambda path: (503, {}, b"") if how == "503" else (200, {}, b"<html>log in</html>")
    return r"127\.0\.0\.1:\d+ answer(s, and not as a hub does|ed 503)"


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no server", "503", "a login page"])
def test_without_network_what_is_here_is_used_and_that_is_said(
    how: str, hub: Hub, monkeypatch, capsys
) -> None:
    commit = dataset(hub)
    before = EpisodeDataset("hf:anna/arm")
    capsys.readouterr()
    why = off(hub, monkeypatch, how)
    for _ in range(2):  # said once
        assert EpisodeDataset("hf:anna/arm").fingerprint == before.fingerprint
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "hf:anna/arm" in line]) == 1
    assert re.match(
        rf"hf:anna/arm: {why}.*; commit {commit[:12]} is used, .* whether there is a newer one is not known$",
        said[0],
    )
    pinned(f"hf:anna/arm@{commit}", kind="dataset")
    assert capsys.readouterr().err == "", "of a commit there is no newer one"
    for name in ("hf:anna/other", "hf:anna/arm@v1", "hf:anna/arm@" + "1" * 40):
        with pytest.raises(
            HubError,
            match=rf"{name}: {why}.*, and it was never fetched in full to .*hub; (unset HF_HUB|check the network)",
        ) as raised:
            EpisodeDataset(name)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("where", ["file", "listing"])
def test_a_listing_that_cannot_be_had_or_kept(where: str, hub: Hub, tmp_path) -> None:
    commit = dataset(hub)
    if where == "listing":
        hub.fails.add(f"/tree/{commit}")
        match = r"broke off \(127\.0\.0\.1:\d+ answered 500\)"
    else:
        (tmp_path / "hub/datasets--anna--arm").mkdir(parents=True)
        (tmp_path / "hub/datasets--anna--arm/trees").write_text("in the way")
        match = r"listing of commit \w{12} could not be had, or not be kept in .*datasets--anna--arm: .*HF_HOME"
    with pytest.raises(HubError, match=match):
        EpisodeDataset("hf:anna/arm")


@pytest.mark.parametrize("broken", ["breaks", "fails"])
def test_an_interrupted_download_goes_on_and_is_never_taken_for_whole(
    broken: str, hub: Hub, monkeypatch
) -> None:
    commit = dataset(hub)
    film = "videos/observation.image/chunk-000/file-000.mp4"
    getattr(hub, broken).add(film)
    for name in ("hf:anna/arm", f"hf:anna/arm@{commit}"):
        with pytest.raises(
            HubError,
            match=rf"fetching commit {commit[:12]} broke off \(.*\); the same again goes on with",
        ) as raised:
            EpisodeDataset(name)
        assert "\n" not in str(raised.value)
    answered = hub.fetched
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name, here in {
        "hf:anna/arm": "never fetched",
        f"hf:anna/arm@{commit}": r"here only in part \(\d files? of it are missing\)",
    }.items():
        with pytest.raises(HubError, match=rf"HF_HUB_OFFLINE is set, and .*{here}"):
            local_folder(name, kind="dataset")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    getattr(hub, broken).clear()
    assert len(EpisodeDataset("hf:anna/arm").all_images("observation.image")) == 7
    again = hub.fetched
    assert film in again and "meta/info.json" in answered and "meta/info.json" not in again


def test_what_another_program_fetched_in_part_is_not_whole(hub: Hub, monkeypatch) -> None:
    """Anybody may have asked for a few files of it: the folder is there, and the branch is
    known."""
    commit = dataset(hub)
    huggingface_hub.hf_hub_download("anna/arm", "meta/info.json", repo_type="dataset")
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            HubError,
            match=rf"commit {commit[:12]} is here only in part \(it is not known which files it lacks\); unset",
        ):
            EpisodeDataset("hf:anna/arm")
    assert len(EpisodeDataset("hf:anna/arm")) == 7


def test_a_file_cut_short_in_the_cache_is_fetched_again(hub: Hub) -> None:
    commit = dataset(hub)
    data = EpisodeDataset("hf:anna/arm")
    wanted = data.fingerprint
    for file in ("meta/info.json", "videos/observation.image/chunk-000/file-000.mp4"):
        hub.asked.clear()
        real = (data.root / file).resolve()
        real.write_bytes(real.read_bytes()[:-10])
        again = EpisodeDataset(f"hf:anna/arm@{commit}")
        assert again.fingerprint == wanted and hub.fetched == [file]


def test_a_full_disk(hub: Hub, monkeypatch) -> None:
    dataset(hub)
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda path: usage._replace(free=10_000))
        with pytest.raises(
            FullDiskError,
            match=r"hf:anna/arm: 0\.\d MB are to be fetched to .*hub, and 0\.0 MB are free there; .*HF_HOME",
        ):
            EpisodeDataset("hf:anna/arm")
    real = huggingface_hub.hf_hub_download

    def fails(repo: str, file: str, **options: object) -> str:
        if file.endswith("mp4"):
            raise OSError(28, "No space left on device")
        return real(repo, file, **options)

    with monkeypatch.context() as full:
        full.setattr(huggingface_hub, "hf_hub_download", fails)
        with pytest.raises(
            FullDiskError, match=r"MB are free there; free some room, or give the hub another cache"
        ):
            EpisodeDataset("hf:anna/arm")
    assert len(EpisodeDataset("hf:anna/arm")) == 7


# --- what is fetched stays as it is
# ------------------------------------------------------------------------------


def test_nothing_is_written_into_the_cache_of_the_hub(hub: Hub, tmp_path, capsys) -> None:
    """Not what is derived, no episode, no policy; and a copy with other words is a copy."""
    source = recorded(tmp_path / "recorded")
    dataset(hub, source)
    data = EpisodeDataset("hf:anna/arm")
    before = files_of(data.root)
    assert (
        data.cache.is_relative_to(tmp_path / "home")
        and "belongs to the hub's cache" in capsys.readouterr().err
    )
    with pytest.raises(ValueError, match="belongs to the hub's cache, where files stay"):
        EpisodeWriter(data.root, FEATURES, fps=5, robot="t", metadata={})
    with pytest.raises(ValueError, match="belongs to the hub's cache, where files stay"):
        save_policy(make_policy(depth=2), data.root / "policy")
    with pytest.raises(ValueError, match="is a name on the hub, and this is written to"):
        write_persistent(data, "hf:anna/copy", [[]] * len(data.episodes))
    said = [[remark("subtask", "go", 0.0)] for _ in data.episodes]
    copy = write_persistent(data, tmp_path / "copy", said)
    shutil.rmtree(tmp_path / "hub")
    assert read_persistent(copy) == said and len(copy.all_images("eye")) == len(copy)
    assert files_of(local_folder("hf:anna/arm", kind="dataset")) == before


FEATURES = Features(("x",), ("dx",), {"eye": (32, 32)}, {})


def recorded(root: Path) -> Path:
    """Episodes from which the recipe of `outside` teaches."""
    writer = EpisodeWriter(root, FEATURES, fps=5, robot="t", metadata={})
    for number in range(2):
        values = np.linspace(-1, 1, 6, dtype=np.float32)[:, None]
        writer.add(
            EpisodeFrames(
                {"eye": np.full((6, 32, 32, 3), 40 * number, np.uint8)},
                values,
                values,
                {},
                "go to the red dot",
                {},
            )
        )
    writer.finalise()
    return root


# --- recipes and the command line
# --------------------------------------------------------------------------------


def test_a_recipe_is_pinned_before_it_runs(hub: Hub, tmp_path) -> None:
    save_policy(make_policy(depth=2), tmp_path / "p")
    files = files_of(tmp_path / "p")
    commit = hub.repository("models", "anna/touch").commit(files)
    older = hub.repository("models", "anna/touch").commit(files | {"README.md": b"#"}, "v1")
    data = dataset(hub)
    recipe = replace(
        tiny_recipe(tmp_path / "out"),
        episodes=Path("hf:anna/arm"),
        teacher=Path("hf:anna/touch"),
        policies=(tmp_path / "p", Path("hf:anna/touch@v1")),
    )
    ready = at_hand(recipe, reads=("episodes", "teacher", "policies"))
    assert ready.episodes == Path(f"hf:anna/arm@{data}") and ready.teacher == Path(
        f"hf:anna/touch@{commit}"
    )
    assert ready.policies == (tmp_path / "p", Path(f"hf:anna/touch@{older}"))
    field = contenders(ready)
    assert (
        list(field) == ["teacher", "p", "touch"]
        and field["teacher"].fingerprint == field["p"].fingerprint
    )
    unread = at_hand(recipe, reads=("teacher",))
    assert unread.episodes == recipe.episodes and unread.policies == recipe.policies
    with pytest.raises(
        ValueError, match=r"--policies names hf:anna/touch@[0-9a-f]{40}, which is evaluated already"
    ):
        contenders(
            replace(ready, policies=(ready.policies[1], ready.policies[1], ready.policies[1]))
        )
    for verb, field_ in ((collect, "episodes"), (teach, "teacher"), (distil, "out")):
        with pytest.raises(
            ValueError,
            match=f"^--{field_}: hf:anna/new is a name on the hub, and this is written to",
        ):
            verb.main(replace(recipe, **{field_: Path("hf:anna/new")}))


def test_the_command_line(hub: Hub, tmp_path, monkeypatch, capsys) -> None:
    """Taught from a data set by name; what is kept says which commit, and no path of this machine.
    Then once more, without network."""
    commit = dataset(hub, recorded(tmp_path / "recorded"))
    command = ["teach", "outside:reaching", "--episodes", "hf:anna/arm", "--teach.steps", "2"]
    command += ["--out", "out", "--teacher", "out/teacher"]
    paths = os.pathsep.join([str(Path(teach.__file__).parents[1]), str(Path(__file__).parents[1])])
    home = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path),
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": paths,
    }
    first = subprocess.run(
        [sys.executable, "-m", "armlet", *command],
        capture_output=True,
        text=True,
        env=os.environ | home,
        cwd=tmp_path,
        check=False,
    )
    assert first.returncode == 0 and "hf:anna/arm: fetching" in first.stderr, first.stderr
    assert "%|" not in first.stderr, "no bar in a log"
    kept = (tmp_path / "out/teacher/config.json").read_text()
    assert (
        json.loads(kept)["provenance"]["recipe"]["episodes"] == f"hf:anna/arm@{commit}"
        and str(tmp_path) not in kept
    )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["armlet", *command])
    hub.asked.clear()
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        main()
    said = capsys.readouterr().err
    assert (
        f"HF_HUB_OFFLINE is set; commit {commit[:12]} is used" in said
        and "was taught exactly this already" in said
    )
    assert hub.asked == []
    hub.repositories.clear()
    with pytest.raises(
        SystemExit,
        match=r"^armlet teach outside:reaching: HubError: hf:anna/arm: there is no data set of this name",
    ):
        main()
