"""RLDS without TensorFlow: what is read beside what a writer of its own wrote, checksums and protobuf
beside other implementations of them, and files that are not what they should be refused by name."""

import io
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rlds_files as made
from PIL import Image

from armlet import inspect
from armlet.data import tfrecord
from armlet.data.episodes import ACTION, STATE, EpisodeDataset, EpisodeError, is_data_set
from armlet.data.frames import load_frames
from armlet.data.language import write_persistent
from armlet.data.layout import Columns

FIRST = "milk_no_noops-train.tfrecord-00000-of-00002"
EPISODES = [(0, 3), (1, 5), (2, 4)]


def test_every_step_is_read_as_it_was_written(tmp_path: Path) -> None:
    data = EpisodeDataset(made.folder(tmp_path))
    assert [episode.length for episode in data.episodes] == [3, 5, 4]
    assert data.tasks == made.WORDS
    assert data.asked.tolist() == [0] * 3 + [1] * 5 + [0] * 4
    assert [episode.info["record"] for episode in data.episodes] == [0, 1, 0]
    columns = data.columns()
    row = 0
    for position, (number, length) in enumerate(EPISODES):
        shown = data.images(position)
        for step in range(length):
            assert np.array_equal(columns[ACTION][row], made.action(number, step))
            assert np.array_equal(columns[STATE][row], made.state(number, step))
            assert np.array_equal(shown["wrist_image"][step], made.pixels(number, step))
            jpeg = io.BytesIO(made.picture(number, step, kind="JPEG"))
            assert np.array_equal(shown["image"][step], np.asarray(Image.open(jpeg)))
            assert data.column("observation/joint")[row] == -number - step
            row += 1
    assert row == len(data)
    assert data.fps == 10 and data.timestamps[4] == pytest.approx(0.1)
    wanted = np.array([11, 0, 7])
    for found, place in zip(
        data.pictures_of("wrist_image", wanted), [(2, 3), (0, 0), (1, 4)], strict=True
    ):
        assert np.array_equal(found, made.pixels(*place))
    assert len(load_frames(data).actions) == 12


def test_columns_are_named_and_joined(tmp_path: Path) -> None:
    made.folder(tmp_path)
    data = EpisodeDataset(tmp_path, Columns(state="observation/joint+observation.state"))
    found = data.columns()[STATE]
    assert found.shape == (12, 9)
    assert np.array_equal(found[4], [-2, *made.state(1, 1)])
    plain = EpisodeDataset(tmp_path)
    assert plain.fingerprint == EpisodeDataset(tmp_path).fingerprint != data.fingerprint
    with pytest.raises(EpisodeError, match=r"no feature 'action/x' .*--columns\.action NAME"):
        EpisodeDataset(tmp_path, Columns(action="action/x"))


def test_actions_in_parts_and_words_within_the_observation_as_in_open_x(tmp_path: Path) -> None:
    described = made.features()
    steps = made.steps_of(described)
    steps["action"] = made.dictionary({"open": made.tensor(), "move": made.tensor(3)})
    steps["observation"]["featuresDict"]["features"]["natural_language_instruction"] = steps.pop(
        "language_instruction"
    )
    lists = made.episode(0, 2)
    lists["steps/action/open"] = np.float32([0, 1])
    lists["steps/action/move"] = np.float32([1, 2, 3, 4, 5, 6])
    lists["steps/observation/natural_language_instruction"] = ["go", "stop"]
    made.folder(tmp_path, [[made.example(lists)]], described=described)
    data = EpisodeDataset(tmp_path, Columns(action="action/move+action/open"))
    assert data.columns()[ACTION].tolist() == [[1, 2, 3, 0], [4, 5, 6, 1]]
    assert data.tasks == ("go", "stop") and data.asked.tolist() == [0, 1]
    assert data.episodes[0].tasks == ("go", "stop")


def test_what_is_not_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = EpisodeDataset(made.folder(tmp_path))
    assert list(data.cameras) == ["image", "wrist_image"]
    said = capsys.readouterr().err
    assert "left out: observation/depth (pictures (16, 16, 1) uint16, no colours)" in said
    assert is_data_set(tmp_path)
    with pytest.raises(EpisodeError, match="is no LeRobotDataset, and has no place for language"):
        write_persistent(data, tmp_path / "copy", [])
    with pytest.raises(EpisodeError, match="give the folder that it lies in"):
        EpisodeDataset(tmp_path / FIRST)


def test_it_is_inspected_like_any_data_set(tmp_path: Path) -> None:
    made.folder(tmp_path / "set")
    page = inspect.main(str(tmp_path / "set"), out=tmp_path)
    assert "3 episodes, 12 frames at 10 Hz" in page and "action, 7 numbers" in page


# Checksums and protobuf, beside other implementations


@pytest.mark.parametrize(
    ("content", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720, B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_checksum_is_that_of_the_rfc(content: bytes, crc: int) -> None:
    assert tfrecord.crc32c(content) == crc


def test_the_checksum_of_any_length_is_that_made_bit_by_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tfrecord, "BLOCK", 61)
    content = np.random.default_rng(0).bytes(300)
    for length in range(0, 300, 7):
        assert tfrecord.crc32c(content[:length]) == made.crc32c(content[:length])


def _protobuf() -> Any:
    """tf.train.Example, as protobuf's own library makes it from its fields."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="e.proto", package="e", syntax="proto3")
    for name, kind in (("BytesList", 12), ("FloatList", 2), ("Int64List", 3)):
        file.message_type.add(name=name).field.add(name="value", number=1, label=3, type=kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("BytesList", "FloatList", "Int64List"), start=1):
        feature.field.add(
            name=name, number=number, label=1, type=11, type_name=f".e.{name}", oneof_index=0
        )
    features = file.message_type.add(name="Features")
    features.field.add(name="feature", number=1, label=3, type=11, type_name=".e.Features.Entry")
    entry = features.nested_type.add(name="Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".e.Feature")
    whole = file.message_type.add(name="Example")
    whole.field.add(name="features", number=1, label=1, type=11, type_name=".e.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("e.Example"))()


def test_examples_are_read_as_protobufs_own_library_wrote_them() -> None:
    message = _protobuf()
    rng = np.random.default_rng(0)
    floats = rng.normal(size=100).astype(np.float32)
    whole = rng.integers(-(2**63), 2**63 - 1, 100) >> rng.integers(0, 63, 100)
    texts = [rng.bytes(int(length)) for length in rng.integers(0, 300, 20)]
    message.features.feature["f"].FloatList.value.extend(floats.tolist())
    message.features.feature["i"].Int64List.value.extend(whole.tolist())
    message.features.feature["b"].BytesList.value.extend(texts)
    message.features.feature["none"].SetInParent()
    content = message.SerializeToString()
    found = tfrecord.example(content, {"f", "i", "b", "none"})
    assert np.array_equal(found["f"].numbers(), floats)
    assert np.array_equal(found["i"].numbers(), whole) and len(found["i"]) == 100
    assert [content[slice(*span)] for span in found["b"].spans] == texts
    assert found["none"].kind == "nothing"
    # The other way round: our test's own writer is read by it, lists packed and not.
    for packed in (True, False):
        written = made.example({"f": floats, "i": whole, "b": texts}, packed=packed)
        message.ParseFromString(written)
        assert list(message.features.feature["i"].Int64List.value) == whole.tolist()
        again = tfrecord.example(written, {"f", "i", "b"})
        assert np.array_equal(again["f"].numbers(), floats)
        assert np.array_equal(again["i"].numbers(), whole)


# What is not as it should be


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / FIRST
        path.write_bytes(change(path.read_bytes()))

    return apply


def _flipped(place: int) -> Callable[[Path], None]:
    def change(content: bytes) -> bytes:
        damaged = bytearray(content)
        damaged[place] ^= 16
        return bytes(damaged)

    return _bytes(change)


def _long(content: bytes) -> bytes:
    length = struct.pack("<Q", 2**60)
    return length + made.marked(length) + content[12:]


def _lists(**changes: Any) -> Callable[[Path], None]:
    """The second episode with other lists; None: without."""

    def apply(root: Path) -> None:
        lists = made.episode(1, 5)
        for name, values in changes.items():
            path = "steps/" + name.replace("__", "/")
            lists[path] = values
            if values is None:
                del lists[path]
        contents = [made.example(made.episode(0, 3)), made.example(lists)]
        (root / FIRST).write_bytes(b"".join(map(made.framed, contents)))

    return apply


def _describe(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        described = made.features()
        change(made.steps_of(described))
        (root / "features.json").write_text(json.dumps(described))

    return apply


def _say(name: str, **values: Any) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        said = json.loads((root / name).read_text())
        (root / name).write_text(json.dumps(said | values))

    return apply


def _twice(root: Path) -> None:
    lists = made.episode(0, 3)
    whole = made.example(lists)
    more = made.message(1, made.entry("steps/action", made.feature(lists["steps/action"])))
    (root / FIRST).write_bytes(made.framed(whole + more))


def _garbage(root: Path) -> None:
    (root / FIRST).write_bytes(made.framed(b"\x0a\xff\xff\xff\xff\x0fno message"))


ONE = made.example(made.episode(0, 3))
SPLIT = {"name": "train", "shardLengths": ["2", "1"]}
DAMAGED = {
    "cut in the content": (_bytes(lambda content: content[:-9]), "record 1, .*copy interrupted"),
    "cut in a length": (
        _bytes(lambda content: content + b"\x01\x02\x03"),
        "record 2, .* is cut short",
    ),
    "cut to its head": (_bytes(lambda content: content[:14]), "record 0, at byte 0, has"),
    "a bit of a length": (_flipped(1), r"record 0, .* \(the checksum of its length\)"),
    "a bit of content": (_flipped(40), r"record 0, .* \(the checksum of its content\)"),
    "a bit of a mark": (_flipped(-1), r"record 1, .* \(the checksum of its content\)"),
    "no TFRecord": (_bytes(lambda content: b"x" * 99), "record 0, .* is no TFRecord"),
    "a length of 2^60": (_bytes(_long), "record 0, .* has 1152921504606846976 bytes by its own"),
    "empty": (_bytes(lambda content: b""), "is empty"),
    "no message": (_garbage, r"record 0 is no tf\.train\.Example"),
    "a name twice": (_twice, "record 0 is no .*'steps/action' is there twice"),
    "no action": (_lists(action=None), "record 1 lacks steps/action, which features.json promises"),
    "fewer actions": (_lists(action=np.zeros(28, np.float32)), "steps and steps/action 4"),
    "a number too few": (
        _lists(action=np.zeros(34, np.float32)),
        "record 1: steps/action has 34 numbers, no multiple of 7",
    ),
    "fewer pictures": (
        _lists(observation__image=[made.picture(1, 0)] * 4),
        "record 1: steps/observation/image has 4 steps and steps/action 5",
    ),
    "whole actions": (
        _lists(action=np.zeros(35, np.int64)),
        "record 1: steps/action holds int64, and features.json says float",
    ),
    "no words": (
        _lists(language_instruction=["go", "", "go", "go", "go"]),
        "record 1: steps/language_instruction of step 1 is empty",
    ),
    "no text": (
        _lists(language_instruction=[b"\xff\xfe"] * 5),
        "language_instruction of step 0 is no UTF-8",
    ),
    "two episodes": (
        _lists(is_first=[1, 0, 1, 0, 0]),
        "record 1: is_first of step 2 of 5 is true; expected one episode a record",
    ),
    "an end before the end": (_lists(is_last=[0, 1, 0, 0, 1]), "is_last of step 1 of 5 is true"),
    "another shape": (
        _describe(lambda steps: steps.update(action=made.tensor(6))),
        "record 0: steps/action has 21 numbers, no multiple of 6",
    ),
    "another type": (
        _describe(lambda steps: steps.update(action=made.tensor(7, dtype="int32"))),
        "record 0: steps/action holds float, and features.json says int64",
    ),
    "one more feature": (
        _describe(lambda steps: steps.update(reward=made.tensor())),
        "record 0 lacks steps/reward",
    ),
    "no words described": (
        _describe(lambda steps: steps.pop("language_instruction")),
        "features.json does not say what the robot was told",
    ),
    "nothing described": (
        _describe(lambda steps: steps.clear()),
        "features.json describes no steps",
    ),
    "a shape of words": (
        _describe(lambda steps: steps["action"]["tensor"]["shape"].update(dimensions=["seven"])),
        r"features\.json: steps/action cannot be understood",
    ),
    "a feature of numbers": (
        _describe(lambda steps: steps.update(action=3)),
        r"features\.json: steps/action is int, expected an object",
    ),
    "no features.json": (lambda root: (root / "features.json").unlink(), r"features\.json is mis"),
    "no rate": (
        lambda root: (root / "metadata.json").unlink(),
        r'metadata\.json is missing; RLDS does not say .*{"control_hz": N}',
    ),
    "a rate of nothing": (_say("metadata.json", control_hz=0), "control_hz is 0, expected"),
    "a file less": (
        lambda root: (root / FIRST).unlink(),
        "split 'train' has 2 files, and 1 .*number 0 is the first that is missing",
    ),
    "a record more": (
        _bytes(lambda content: content + made.framed(ONE)),
        r"has 3 records, and dataset_info\.json says 2",
    ),
    "another format": (_say("dataset_info.json", fileFormat="array_record"), "expected tfrecord"),
    "no splits": (_say("dataset_info.json", splits=[]), "lists no splits"),
    "a strange split": (
        _say("dataset_info.json", splits=[{"name": "val", "shardLengths": ["1"]}]),
        "split 'val' has 1 files, and 0 of it",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_not_as_it_should_be_is_refused_by_name(tmp_path: Path, what: str) -> None:
    change, said = DAMAGED[what]
    change(made.folder(tmp_path))
    with pytest.raises(EpisodeError, match=said) as error:
        EpisodeDataset(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_no_memory_is_taken_for_a_length_that_the_file_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.folder(tmp_path)
    monkeypatch.setattr(tfrecord, "MOST_BYTES", 100)
    with pytest.raises(EpisodeError, match="bytes, expected 100 at most, as protobuf does"):
        EpisodeDataset(tmp_path)


PICTURES = {
    "half a JPEG": (made.picture(1, 0, kind="JPEG")[:300], "cannot be read as JPEG or PNG"),
    "half a PNG": (made.picture(1, 0)[:50], "cannot be read as JPEG or PNG"),
    "no picture": (b"GIF89a" + bytes(50), "cannot be read as JPEG or PNG"),
    "nothing": (b"", "is empty"),
    "another size": (
        made.picture(1, 0, side=8),
        r"is 8 × 8, and features\.json says 16 × 16",
    ),
}


@pytest.mark.parametrize("what", PICTURES)
def test_pictures_that_are_damaged_are_named_when_they_are_wanted(
    tmp_path: Path, what: str
) -> None:
    kept, said = PICTURES[what]
    _lists(observation__image=[made.picture(1, 0)] * 3 + [kept] * 2)(made.folder(tmp_path))
    data = EpisodeDataset(tmp_path)
    data.columns()
    with pytest.raises(EpisodeError, match=rf"record 1: image of step 3 {said}"):
        data.images(1)


def test_files_that_changed_since_are_refused(tmp_path: Path) -> None:
    data = EpisodeDataset(made.folder(tmp_path))
    _bytes(lambda content: content[:-1])(tmp_path)
    for read in (data.columns, lambda: data.images(0)):
        with pytest.raises(EpisodeError, match="has changed since the data set was opened"):
            read()


def test_a_flipped_bit_of_a_record_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord-00000-of-00001"
    whole = made.framed(b"some content")
    for bit in range(0, 8 * len(whole), 5):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        with pytest.raises(EpisodeError, match="record 0"):
            list(tfrecord.records(path))


def test_bytes_that_are_no_message_are_refused_and_never_a_traceback() -> None:
    whole = made.example({"steps/is_first": [1, 0, 0], "steps/action": np.zeros(21, np.float32)})
    names = {"steps/is_first", "steps/action"}
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = int(rng.integers(256))
        try:
            for values in tfrecord.example(bytes(damaged), names).values():
                values.numbers()
        except tfrecord.WireError:
            refused += 1
    assert refused > 100


# Beside tensorflow_datasets itself


def test_what_tensorflow_datasets_serialised_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Made by golden/rlds/make.py. Copied, as what is derived from it is kept beside it.
    golden = Path(__file__).parent / "golden/rlds"
    shutil.copytree(golden, tmp_path / "set", ignore=shutil.ignore_patterns("*.py", ".cache"))
    data = EpisodeDataset(tmp_path / "set")
    assert "left out: observation/packed (packed by zlib)" in capsys.readouterr().err
    assert [episode.length for episode in data.episodes] == [2, 3]
    assert data.tasks == made.WORDS and data.cameras == {"any": (16, 16), "image": (16, 16)}
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    columns = data.columns()
    for row, (number, step) in enumerate(places):
        assert np.array_equal(columns[ACTION][row], made.action(number, step))
        assert np.array_equal(columns[STATE][row], made.state(number, step))
        for camera in data.cameras:
            assert np.array_equal(data.images(number)[camera][step], made.pixels(number, step))
        pose = data.column("observation/pose")[row]
        assert np.array_equal(pose, np.arange(6).reshape(2, 3) + step)
        assert data.column("observation/gripper")[row] == step % 2
