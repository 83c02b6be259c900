"""The two folders in which OpenVLA stands on disk, as they say what they hold: Hugging Face's, with
a `config.json` of `model_type` openvla, and the run folder of the project's own trainer, with a
`config.json` that has a table `vla` and weights in `checkpoints/`. Headers and small files only.

The same weights answer differently in the two, as they do in the original: RMSNorm's eps is 1e-6 in
one, whose config says only what differs from transformers' defaults, and 1e-5 in the other, which
takes Llama-2's own; and the constants by which pixels are normalised were rounded to bf16 when the
first was made from the second. (openvla c8f03f4, transformers 4.40.1.)
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

from armlet.data.files import read_json
from armlet.policies.pretrained.dino_siglip import MEANS, STDS, Sizes
from armlet.policies.pretrained.fields import Fields
from armlet.policies.pretrained.files import COPY, Names, Tensors, open_pickled, open_sharded
from armlet.policies.pretrained.openvla_files import (
    HUGGING_FACE,
    RUN_FOLDER,
    VISION_HEADS,
    LlamaFacts,
    Statistics,
    read_statistics,
)

CONFIG = "config.json"
PIXELS = "preprocessor_config.json"
CHECKPOINTS = "checkpoints"
BINS = 256
PADDED = 64  # rows of the word table behind the vocabulary, where a folder does not say
BICUBIC = 3  # as torchvision's configs name it
# transformers 4.40.1's LlamaConfig, of which a config says only what differs.
LLAMA: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "vocab_size": 32000,
}
# What must be as it is there, or the network would be another.
AS_USUAL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "rope_scaling": None,
}
LLAMA_2_EPS = 1e-5  # Llama-2's own, which run folders take
HEADS = {4096: 32, 5120: 40}  # width of a Llama-2 → its heads
BASE = "dinosiglip-224px"  # in the name of a run's vision-language model


@dataclass(frozen=True)
class HuggingFaceFolder:
    """See the module's docstring."""

    root: Path
    config: dict[str, Any]
    vision_heads: int = VISION_HEADS

    @classmethod
    def read(cls, root: Path, vision_heads: int = VISION_HEADS) -> Self:
        """Raises FileNotFoundError or ValueError naming the file or field that will not do."""
        config = read_json(root / CONFIG, fix=COPY)
        found = cls(root, config, vision_heads)
        found._check()
        return found

    def _check(self) -> None:
        """Raises ValueError for a network or pictures of another kind, by name."""
        path = self.root / CONFIG
        self._check_towers()
        for name, wanted in (
            ("arch_specifier", "no-align+fused-gelu-mlp"),
            ("image_resize_strategy", "resize-naive"),
        ):
            found = self.config.get(name, wanted)
            if found != wanted:
                raise ValueError(f"{path}: {name} is {found!r}, and only {wanted!r} is read here")
        text = self._text
        self._check_numbers()
        for name, usual in AS_USUAL.items():
            if text.get(name, usual) != usual:
                raise ValueError(
                    f"{path}: text_config.{name} is {text[name]!r}, and only {usual!r} is read "
                    "here: the language model must be Llama-2's"
                )
        rope = text.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            raise ValueError(
                f"{path}: text_config.rope_parameters is {rope!r:.80}, and only rope_type "
                "'default' is read here"
            )

    def _check_towers(self) -> None:
        """Raises ValueError unless the image towers are DINOv2 and SigLIP, in this order."""
        path = self.root / CONFIG
        backbone = self.config.get("vision_backbone_id")
        towers = self.config.get("timm_model_ids")
        if self.config.get("use_fused_vision_backbone") is False or (
            isinstance(towers, list) and len(towers) == 1
        ):
            raise ValueError(
                f"{path}: one image tower ({backbone or towers}): this is OpenVLA v0.1, which "
                "has SigLIP alone, letterboxed pictures and another prompt, and is not read here; "
                "take openvla-7b, or a model fine-tuned from it"
            )
        if towers is not None and not (
            isinstance(towers, list)
            and len(towers) == 2
            and "dinov2" in str(towers[0])
            and "siglip" in str(towers[1])
        ):
            raise ValueError(
                f"{path}: timm_model_ids is {towers!r:.120}, and only DINOv2 and SigLIP, in this "
                "order, are read here"
            )
        # Other activations than those towers have of themselves.
        others = self.config.get("timm_override_act_layers")
        if others and (not isinstance(others, list) or any(each is not None for each in others)):
            raise ValueError(
                f"{path}: timm_override_act_layers is {others!r:.80}, and only the towers' own "
                "activations are read here"
            )

    def _check_numbers(self) -> None:
        """Raises ValueError naming a field of the config that should be a number, and is none."""
        text = {**LLAMA, **self._text}
        heads = text.get("num_key_value_heads")
        whole = {
            "pad_to_multiple_of": self.config.get("pad_to_multiple_of", PADDED),
            "n_action_bins": self.config.get("n_action_bins", BINS),
            "text_config.num_attention_heads": text["num_attention_heads"],
            "text_config.num_key_value_heads": 1 if heads is None else heads,
            "text_config.vocab_size": text["vocab_size"],
        }
        for name, value in whole.items():
            least = 0 if name == "pad_to_multiple_of" else 1
            if type(value) is not int or not least <= value < 2**31:
                raise ValueError(
                    f"{self.root / CONFIG}: {name} is {value!r:.60}, expected a whole number of "
                    f"{least} or more; {COPY}"
                )
        rope = text.get("rope_parameters") or {}
        for name, value in (
            ("rms_norm_eps", text["rms_norm_eps"]),
            ("rope_theta", rope.get("rope_theta", text["rope_theta"])),
        ):
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(
                    f"{self.root / CONFIG}: text_config.{name} is {value!r:.60}, expected a number "
                    f"of more than 0; {COPY}"
                )

    @property
    def _text(self) -> dict[str, Any]:
        found = self.config.get("text_config") or {}
        if not isinstance(found, dict):
            raise ValueError(f"{self.root / CONFIG}: text_config is {found!r:.60}; {COPY}")
        return found

    @cached_property
    def tensors(self) -> Tensors:
        return open_sharded(self.root)

    @property
    def names(self) -> Names:
        return HUGGING_FACE.names(self.tensors)

    @property
    def vocabulary(self) -> int:
        """Words the network was taught with, of the rows of its word table."""
        padded = self.config.get("pad_to_multiple_of", PADDED)
        rows = {**LLAMA, **self._text}["vocab_size"]
        if padded + self.bins > rows:
            raise ValueError(
                f"{self.root / CONFIG}: {rows} rows of a word table, of which pad_to_multiple_of "
                f"says that {padded} are padding, have no room for {self.bins} action words; {COPY}"
            )
        return int(rows - padded)

    @property
    def bins(self) -> int:
        return int(self.config.get("n_action_bins", BINS))

    @cached_property
    def sizes(self) -> Sizes:
        """Of its network. Raises ValueError where config and tensors contradict one another."""
        text = {**LLAMA, **self._text}
        rope = text.get("rope_parameters") or {}
        facts = LlamaFacts(
            heads=int(text["num_attention_heads"]),
            kv_heads=int(text.get("num_key_value_heads") or text["num_attention_heads"]),
            eps=float(text["rms_norm_eps"]),
            vocabulary=self.vocabulary,
            theta=float(rope.get("rope_theta", text["rope_theta"])),
        )
        means, stds, side = self._pixels()
        sizes = HUGGING_FACE.sizes(
            self.tensors, facts, heads=self.vision_heads, means=means, stds=stds
        )
        found = {
            "hidden_size": sizes.llama.width,
            "intermediate_size": sizes.llama.mlp,
            "num_hidden_layers": sizes.llama.depth,
            "vocab_size": sizes.llama.rows,
        }
        for name, value in found.items():
            if text[name] != value:
                raise ValueError(
                    f"{self.root / CONFIG}: text_config.{name} is {text[name]!r}, and the tensors "
                    f"have {value}: are files of two models mixed? {COPY}"
                )
        if side != sizes.dino.side:
            raise ValueError(
                f"{self.root / PIXELS}: pictures of {side} px, and the towers see "
                f"{sizes.dino.side}; {COPY}"
            )
        return sizes

    def _pixels(self) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...], int]:
        """Means and deviations of both towers' pixels, and the side of pictures. Raises ValueError
        where pictures are prepared in another way."""
        path = self.root / PIXELS
        said = read_json(path, fix=COPY)
        # What was stored of the transforms counts, as it does when the original reads it: rounded
        # to bf16, and not the exact constants that stand beside it.
        transforms = said.get("tvf_normalize_params")
        try:
            if not transforms:
                pairs = zip(said["means"], said["stds"], strict=True)
                transforms = [{"mean": mean, "std": std} for mean, std in pairs]
            means = tuple(tuple(map(float, each["mean"])) for each in transforms)
            stds = tuple(tuple(map(float, each["std"])) for each in transforms)
            sizes = [list(map(int, each)) for each in said["input_sizes"]]
            self._check_resizing(said, sizes[0][-1])
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{path} does not say how pictures are prepared as it should ({error}); {COPY}"
            ) from error
        counts = (len(means), len(stds), len(sizes))
        if counts != (2, 2, 2) or any(len(each) != 3 for each in (*means, *stds, *sizes)):
            raise ValueError(
                f"{path}: expected means, deviations and sizes of two towers, three numbers each; "
                f"found {len(means)}, {len(stds)} and {len(sizes)}; {COPY}"
            )
        if not all(map(math.isfinite, sum(means + stds, ()))) or min(map(min, stds)) <= 0:
            raise ValueError(
                f"{path}: pixels have means {means} and deviations {stds}; expected finite numbers, "
                f"and deviations of more than 0; {COPY}"
            )
        return means, stds, sizes[0][1]

    def _check_resizing(self, said: Mapping[str, Any], side: int) -> None:
        """Raises ValueError, without the file's name, unless a picture is scaled to a square by
        Pillow's bicubic filter, and nothing else."""
        wrong = []
        if said.get("image_resize_strategy", "resize-naive") != "resize-naive":
            wrong.append(f"image_resize_strategy is {said['image_resize_strategy']!r}")
        if said.get("tvf_do_letterbox"):
            wrong.append("tvf_do_letterbox is true")
        for size in said.get("input_sizes", ()):
            if list(size) != [3, side, side]:
                wrong.append(f"input_sizes has {size}, expected [3, {side}, {side}] for both")
        for each in said.get("interpolations") or ():
            if each != "bicubic":
                wrong.append(f"interpolations has {each!r}")
        for each in said.get("tvf_resize_params") or ():
            if each.get("interpolation") != BICUBIC or _square(each.get("size")) != side:
                wrong.append(f"tvf_resize_params has {each!r:.90}")
        for each in said.get("tvf_crop_params") or ():
            if _square(each.get("output_size")) != side:  # a crop to the whole is none
                wrong.append(f"tvf_crop_params has {each!r:.60}")
        if wrong:
            raise ValueError(
                f"{'; '.join(wrong)}: only pictures that are scaled to a square by a bicubic "
                "filter (resize-naive), and not cropped, are read here"
            )

    @property
    def statistics(self) -> Statistics:
        return read_statistics(self.root, self.config)

    @property
    def remarks(self) -> list[str]:
        """What in it should be looked at."""
        found = []
        beside = self.statistics
        inside = self.config.get("norm_stats")
        if beside.source.name != CONFIG and isinstance(inside, dict) and inside != beside.sets:
            found.append(
                f"{beside.source.name} differs from `norm_stats` in {CONFIG} and counts, as in the "
                "published evaluation: a fine-tuned folder has the statistics of its own data there"
            )
        return found

    def files(self) -> list[Path]:
        """All that decides its answers, but the tokenizer."""
        found = [self.root / CONFIG, self.root / PIXELS, self.statistics.source]
        index = self.root / "model.safetensors.index.json"
        if index.is_file():
            found.append(index)
        return sorted({*found, *self.tensors.files})


def _square(size: Any) -> int | None:
    """The side of a square that torchvision's configs say as one number, or two."""
    if isinstance(size, int):
        return size
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        return int(size[0])
    return None


@dataclass(frozen=True)
class RunFolder:
    """See the module's docstring. `weights`: the name of one of its checkpoints, where it has
    several; `llama` what is said of the language model from outside, as Llama's `config.json` has
    it."""

    root: Path
    config: dict[str, Any]
    weights: Path
    llama: Mapping[str, Any]
    vision_heads: int = VISION_HEADS

    @classmethod
    def read(
        cls,
        root: Path,
        weights: str | None = None,
        llama: Mapping[str, Any] | None = None,
        vision_heads: int = VISION_HEADS,
    ) -> Self:
        """Raises FileNotFoundError or ValueError naming the file or field that will not do."""
        config = read_json(root / CONFIG, fix=COPY)
        base = str(Fields(config, root / CONFIG).table_or_empty("vla").values.get("base_vlm"))
        if BASE not in base:
            raise ValueError(
                f"{root / CONFIG}: vla.base_vlm is {base!r}, and only models of both image towers "
                f"at 224 px are read here (prism-{BASE}+7b); OpenVLA v0.1 (siglip-224px+7b) has "
                "SigLIP alone and another prompt"
            )
        return cls(root, config, chosen_weights(root, weights), llama or {}, vision_heads)

    @cached_property
    def tensors(self) -> Tensors:
        """Of the modules within `["model"]`."""
        found = open_pickled(self.weights).part("model.")
        if not found:
            raise ValueError(
                f"{self.weights} has no `model` of modules with tensors: it is no checkpoint of a "
                f"run; {COPY}"
            )
        return found

    @property
    def names(self) -> Names:
        return RUN_FOLDER.names(self.tensors)

    @property
    def heads(self) -> int | None:
        """Of the language model: as was said, or Llama-2's at that width; None: nobody knows."""
        _, width = self._table
        found = self.llama.get("num_attention_heads", HEADS.get(width))
        return None if found is None else int(found)

    @property
    def _table(self) -> tuple[int, int]:
        """Rows and width of the word table."""
        table = "llm_backbone.llm.model.embed_tokens.weight"
        if table not in self.tensors:
            raise ValueError(f"{self.weights} has no {table}: it is of another kind; {COPY}")
        rows, width = self.tensors[table].shape
        return rows, width

    def sizes(self, vocabulary: int | None = None) -> Sizes:
        """Of its network, which was taught with so many words; None: as many as fill the table.
        Raises ValueError where the number of heads, which no file of it says, is not known, or the
        word table is another tokenizer's."""
        rows, width = self._table
        heads = self.heads
        if heads is None:
            raise ValueError(
                f"{self.root}: its language model is {width} wide, and how many heads it has is "
                "said nowhere in a run folder; give `llm_heads` in [options] of policy.toml, or as "
                "`tokenizer` a folder with the language model's own config.json"
            )
        words = rows - PADDED if vocabulary is None else vocabulary
        # `<PAD>` was added to the words, and the table then grown to a multiple of 64.
        expected = -(-(words + 1) // PADDED) * PADDED
        if rows != expected:
            raise ValueError(
                f"{self.weights}: its word table has {rows} rows, and a tokenizer of {words} words "
                f"would have left {expected}: it is another model's; give its own as `tokenizer` "
                "in policy.toml"
            )
        facts = LlamaFacts(
            heads=heads,
            kv_heads=int(self.llama.get("num_key_value_heads") or heads),
            eps=float(self.llama.get("rms_norm_eps", LLAMA_2_EPS)),
            vocabulary=words,
            theta=float(self.llama.get("rope_theta", LLAMA["rope_theta"])),
        )
        return RUN_FOLDER.sizes(
            self.tensors, facts, heads=self.vision_heads, means=MEANS, stds=STDS
        )

    @property
    def statistics(self) -> Statistics:
        return read_statistics(self.root, self.config)

    def files(self) -> list[Path]:
        """All that decides its answers, but the tokenizer."""
        return sorted({self.root / CONFIG, self.statistics.source, self.weights})


def checkpoints_of(root: Path) -> list[Path]:
    """The checkpoints of a run, oldest step first; one under two names, as `latest-checkpoint.pt`
    may be, once."""
    found: list[Path] = []
    for path in sorted((root / CHECKPOINTS).glob("*.pt"), key=_step):
        if not any(path.samefile(other) for other in found):
            found.append(path)
    return found


def _step(path: Path) -> tuple[int, str]:
    number = re.search(r"step-(\d+)", path.name)
    return (int(number[1]) if number else 2**62, path.name)


def chosen_weights(root: Path, name: str | None) -> Path:
    """The checkpoint of a run of that name or, without one, the only one. Raises FileNotFoundError
    where there is none, and ValueError where there are several and nobody chose."""
    found = checkpoints_of(root)
    known = ", ".join(path.name for path in found)
    if not found:
        raise FileNotFoundError(f"{root / CHECKPOINTS} holds no checkpoint (*.pt); {COPY}")
    if name is not None:
        path = root / CHECKPOINTS / name
        if Path(name).name != name or not path.is_file():
            raise ValueError(
                f"weights is {name!r}, and {root / CHECKPOINTS} has no such file; there are {known}"
            )
        return path
    if len(found) > 1:
        raise ValueError(
            f"{root / CHECKPOINTS} has {len(found)} checkpoints, and which is meant is not "
            f"guessed: give `weights` in [options] of policy.toml, one of {known}"
        )
    return found[0]


class LanguageModelOptions(Protocol):
    """Options of a kind whose run folder does not say what its language model is."""

    # Properties: options are frozen.
    @property
    def llm_heads(self) -> int | None: ...

    @property
    def llm_kv_heads(self) -> int | None: ...

    @property
    def rms_norm_eps(self) -> float | None: ...


def language_model_said(tokenizer: str | None, options: LanguageModelOptions) -> dict[str, Any]:
    """What is said of the language model, as Llama's `config.json` has it: by the options, over
    that file, where the tokenizer's folder has one."""
    llama = _language_model_config(tokenizer)
    for name, value in (
        ("num_attention_heads", options.llm_heads),
        ("num_key_value_heads", options.llm_kv_heads),
        ("rms_norm_eps", options.rms_norm_eps),
    ):
        if value is not None:
            llama[name] = value
    if options.llm_heads is not None and options.llm_kv_heads is None:
        llama.pop("num_key_value_heads", None)  # of the heads that somebody else said
    return llama


def _language_model_config(tokenizer: str | None) -> dict[str, Any]:
    """What Llama's own `config.json` says, where the tokenizer's folder has one."""
    path = Path(tokenizer or "") / CONFIG
    if tokenizer is None or not path.is_file():
        return {}
    said = read_json(path, fix=COPY)
    if said.get("model_type") != "llama":
        return {}
    for name, usual in AS_USUAL.items():
        if said.get(name, usual) != usual:
            raise ValueError(
                f"{path}: {name} is {said[name]!r}, and only {usual!r} is read here: the language "
                "model must be Llama-2's"
            )
    fields = Fields(said, path)
    found: dict[str, Any] = {}
    for name in ("num_attention_heads", "num_key_value_heads"):
        if said.get(name) is not None:
            found[name] = fields.whole(name)
    for name in ("rms_norm_eps", "rope_theta"):
        if said.get(name) is not None:
            found[name] = fields.real(name, above=0)
    return found
