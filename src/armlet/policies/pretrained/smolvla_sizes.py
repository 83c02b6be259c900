"""What SmolVLA's network is made of, in numbers: from the config of its policy folder, and from
that of its VLM (SmolVLM2), which the folder does not hold.

Knows configs; knows no tensor. A wrong number of heads fits every tensor of a checkpoint without
complaint and gives other actions, so the VLM's config is read, or known by name, and never guessed.
(LeRobot 0.6.1, `policies/smolvla/`.)
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from armlet.data.files import read_json
from armlet.policies.pretrained.fields import Fields
from armlet.policies.pretrained.files import COPY

Positions = Literal["right", "shifted"]
Loss = Literal["masked", "padded"]
DEEPEST = 1024  # layers of a VLM's two parts; published ones have 32
BASE = 10_000.0  # of the rotary positions, whatever the VLM's own `rope_theta` says


@dataclass(frozen=True)
class Text:
    """The language model, and the expert beside it, which has its heads."""

    width: int
    inner: int  # of an MLP
    heads: int
    kv_heads: int
    head: int  # numbers of one
    vocabulary: int
    expert_width: int
    expert_inner: int
    epsilon: float = 1e-5
    activation: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True)
class Eye:
    """The vision transformer. `image` and `patch` are sides in pixels."""

    width: int
    inner: int
    layers: int
    heads: int
    image: int
    patch: int
    epsilon: float = 1e-6
    activation: str = "gelu_pytorch_tanh"

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image // self.patch


@dataclass(frozen=True)
class Vlm:
    """What a VLM's config says. `layers` are those of the language model."""

    text: dict[str, Any]
    eye: Eye
    shuffle: int
    layers: int
    pad: int


# The VLM that checkpoints of the hub name, by its config there.
KNOWN = {
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": {
        "scale_factor": 4,
        "pad_token_id": 2,
        "text_config": {
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 64,
            "num_hidden_layers": 32,
            "vocab_size": 49280,
        },
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
    }
}


@dataclass(frozen=True)
class Sizes:
    """A network of SmolVLA. `cameras`: name → (height, width) in pixels of the pictures that its
    config names, though it takes any; `layers`: what the expert's layer beside each of the language
    model's reads, `self`, `cross` or `nothing`, where there is none; `picture`: (width, height) to
    which pictures are brought, None: as they are; `blanks`: cameras that it was taught with and
    nobody has; `marks`: the tokens around a picture, (start, start, end), where there are any;
    `pixels`: a camera's normaliser, where pictures are normalised."""

    text: Text
    eye: Eye
    shuffle: int
    cameras: dict[str, tuple[int, int]]
    layers: tuple[str, ...]
    chunk: int
    execute: int
    steps: int
    text_tokens: int
    state_room: int  # numbers that its state may have
    action_room: int
    picture: tuple[int, int] | None
    min_period: float
    max_period: float
    pad: int  # id of the token that pads
    padded: bool = True  # to `text_tokens`, not to the longest of a batch
    new_line: bool = True
    blanks: int = 0
    marks: tuple[int, ...] = ()
    prefix_length: int = 0
    vision_positions: Positions = "right"
    loss: Loss = "masked"
    seed: int = 0
    vlm_precision: str = "fp32"  # of weights; `bf16`, `fp16`
    expert_precision: str = "fp32"
    pixels: dict[str, dict[str, list[float]]] | None = None

    @property
    def picture_tokens(self) -> dict[str, int]:
        """Tokens of each camera's picture, of the size that the config names."""
        found = {}
        for name, size in self.cameras.items():
            height, width = size if self.picture is None else self.picture[::-1]
            patches = (height // self.eye.patch) * (width // self.eye.patch)
            found[name] = patches // self.shuffle**2
        return found

    @property
    def prefix_tokens(self) -> int:
        """Tokens of pictures, words and state together."""
        each = list(self.picture_tokens.values())
        pictures = sum(each) + self.blanks * each[-1]
        marks = len(self.marks) * (len(each) + self.blanks)
        return max(pictures + marks + self.text_tokens + 1, self.prefix_length)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        values: dict[str, Any] = {}
        for name, value in said.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        values["text"] = Text(**values["text"])
        values["eye"] = Eye(**values["eye"])
        values["cameras"] = {name: tuple(size) for name, size in values["cameras"].items()}
        return cls(**values)


def read_vlm(folder: Path) -> Vlm:
    """What the config of a VLM's folder says. Raises FileNotFoundError or ValueError naming file
    and field."""
    place = folder / "config.json"
    return vlm_of(read_json(place, fix="give the folder of the VLM, with its config.json"), place)


def vlm_of(said: Mapping[str, Any], place: Path | str) -> Vlm:
    """A VLM's config as read from `place`. Raises ValueError naming a field that is missing, or of
    which nothing is known here."""
    whole = Fields(said, place)
    for part in ("text_config", "vision_config"):
        if not isinstance(said.get(part), dict):
            raise ValueError(f"{place} has no `{part}`: it is no config of a SmolVLM; {COPY}")
    text = whole.table("text_config")
    text.text("model_type", "llama", known=("llama",))
    width = text.whole("hidden_size")
    heads = text.whole("num_attention_heads")
    # Most of a Llama's config may be null, for what is usual.
    kv_heads = text.whole_or_none("num_key_value_heads") or heads
    head = text.whole_or_none("head_dim") or width // heads
    if heads % kv_heads or not head:
        raise ValueError(
            f"{place}: text_config of width {width} has {heads} heads of {head} numbers, of which "
            f"{kv_heads} have keys and values: expected a divisor; {COPY}"
        )
    sizes = {
        "width": width,
        "inner": text.whole("intermediate_size"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head": head,
        "vocabulary": text.whole("vocab_size", most=2**22),
        "epsilon": text.real("rms_norm_eps", 1e-5, above=0),
        "activation": text.text("hidden_act", "silu"),
        "attention_bias": text.flag("attention_bias", False),
        "mlp_bias": text.flag("mlp_bias", False),
    }
    vision = whole.table("vision_config")
    eye = Eye(
        width=vision.whole("hidden_size"),
        inner=vision.whole("intermediate_size"),
        layers=vision.whole("num_hidden_layers", most=DEEPEST),
        heads=vision.whole("num_attention_heads"),
        image=vision.whole("image_size"),
        patch=vision.whole("patch_size"),
        epsilon=vision.real("layer_norm_eps", 1e-6, above=0),
        activation=vision.text("hidden_act", "gelu_pytorch_tanh"),
    )
    if eye.width % eye.heads or eye.image < eye.patch:
        raise ValueError(
            f"{place}: vision_config of width {eye.width} has {eye.heads} heads, and pictures of "
            f"{eye.image} pixels patches of {eye.patch}: expected a divisor, and one patch at least; "
            f"{COPY}"
        )
    pad = whole.whole_or_none("pad_token_id", least=0, most=2**22)
    if pad is None:
        pad = text.whole_or_none("pad_token_id", least=0, most=2**22)
    layers = text.whole("num_hidden_layers", most=DEEPEST)
    return Vlm(sizes, eye, whole.whole("scale_factor", 2), layers, pad or 0)


def expert_inner(width: int) -> int:
    """Of an expert's MLP: two thirds of four times its width, in whole blocks of 256."""
    inner = 4 * int(2 * width / 3)
    return 256 * -(-inner // 256)


def text_of(vlm: Vlm, multiplier: float) -> Text:
    """The language model's sizes with those of its expert, `multiplier` times as wide."""
    wide = int(vlm.text["width"] * multiplier)
    return Text(**vlm.text, expert_width=wide, expert_inner=expert_inner(wide))


def reads_of(
    layers: int, experts: int, every: int, mode: str, place: Path | str
) -> tuple[str, ...]:
    """What the expert's layer beside each of the language model's `layers` reads. There are
    `experts` of them, the first of every `layers / experts`; `every` n-th layer of the language
    model attends to the actions, too (not at all where it is not above 0).

    Raises ValueError where the two counts cannot be brought together: LeRobot shapes an expert's
    layer by its number in the expert and runs it by its number in the language model, and fails
    where these say different things.
    """
    if experts < 1 or layers % experts:
        raise ValueError(
            f"{place}: num_expert_layers is {experts}, expected a divisor of the {layers} layers "
            "of the language model"
        )
    apart = layers // experts
    found = []
    for index in range(layers):
        attends = "cross" not in mode or (every > 0 and index % every == 0)
        if index % apart:
            if attends:
                raise ValueError(
                    f"{place}: layer {index} should attend to the actions "
                    f"(self_attn_every_n_layers {every}), and the expert has no layer beside it "
                    f"(num_expert_layers {experts} of {layers}); LeRobot cannot run it either"
                )
            found.append("nothing")
            continue
        expert = index // apart
        shaped = "cross" not in mode or (every > 0 and expert % every == 0)
        if shaped != attends:
            raise ValueError(
                f"{place}: layer {expert} of the expert is shaped to "
                f"{'attend to' if shaped else 'read beside'} the actions, and stands beside layer "
                f"{index} of the language model, where it does the other (self_attn_every_n_layers "
                f"{every}, num_expert_layers {experts} of {layers}); LeRobot cannot run it either"
            )
        found.append("self" if attends else "cross")
    return tuple(found)
