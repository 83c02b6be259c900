"""The VLM that a SmolVLA's folder names and does not hold: its sizes and heads, and its words.

They are read in a folder that somebody gives, or known by name and taken where the tensors fit, or
asked for; never guessed.
"""

import re
from pathlib import Path

from tokenizers import Tokenizer

from armlet.data.files import read_json
from armlet.layers.pretrained import fetch_tokenizer
from armlet.policies.pretrained.files import COPY, Tensors
from armlet.policies.pretrained.lerobot import CONFIG, WEIGHTS, Folder
from armlet.policies.pretrained.said import FILE, Said
from armlet.policies.pretrained.smolvla_sizes import KNOWN, Vlm, read_vlm, vlm_of

VLM = "model.vlm_with_expert.vlm.model."  # how its tensors are called
FAKE = "<fake_token_around_image>"  # the tokens around a picture
GLOBAL = "<global-img>"


class UnknownVlmError(ValueError):
    """Nobody says how large the VLM is."""


def width_of(tensors: Tensors) -> int:
    """The language model's width, by its words."""
    header = tensors.get(f"{VLM}text_model.embed_tokens.weight")
    return 0 if header is None else header.shape[-1]


def layers_of(tensors: Tensors) -> int:
    """The language model's layers."""
    found = [re.search(r"text_model\.layers\.(\d+)\.", name) for name in tensors]
    return 1 + max((int(each[1]) for each in found if each), default=-1)


def vlm_folder(said: Said) -> Path | None:
    """The folder of the VLM, where one is given."""
    name = said.options.get("vlm")
    if isinstance(name, str):
        beside = said.source if said.source.is_dir() else said.source.parent
        return beside / name
    words = words_folder(said)
    if words is not None and (words / "config.json").is_file():
        return words
    return None


def words_folder(said: Said) -> Path | None:
    """The folder of the tokenizer, where one is given."""
    if said.tokenizer is not None and Path(said.tokenizer).is_dir():
        return Path(said.tokenizer)
    return None


def find_vlm(said: Said, folder: Folder) -> tuple[Vlm, str]:
    """The VLM's sizes, and where they are from. Raises ValueError where nobody gives them, or they
    do not fit the tensors."""
    place = vlm_folder(said)
    if place is not None:
        vlm = read_vlm(place)
        wrong = _unlike(vlm, folder.tensors)
        if wrong:
            raise ValueError(
                f"{place} is of another VLM than {folder.root / WEIGHTS}: {'; '.join(wrong)}"
            )
        return vlm, str(place / "config.json")
    name = folder.fields.text("vlm_model_name")
    asked = (
        f"give the folder of that VLM (config.json, tokenizer.json) as `vlm` in [options] of {FILE}"
    )
    if name not in KNOWN:
        raise UnknownVlmError(
            f"{folder.root / CONFIG}: its VLM is {name!r}, whose sizes and heads are not in the "
            f"checkpoint and not known here; {asked}"
        )
    vlm = vlm_of(KNOWN[name], name)
    wrong = _unlike(vlm, folder.tensors)
    if wrong:
        raise UnknownVlmError(
            f"{folder.root / CONFIG} names {name!r}, and its tensors are of another VLM "
            f"({'; '.join(wrong)}), whose heads are in no file of it; {asked}"
        )
    return vlm, f"{name}, known here"


def _unlike(vlm: Vlm, tensors: Tensors) -> list[str]:
    """How the tensors of a checkpoint differ from the sizes of a VLM."""
    text = vlm.text
    wide = text["width"]
    eye = vlm.eye
    expected = {
        "connector.modality_projection.proj.weight": (wide, eye.width * vlm.shuffle**2),
        "vision_model.embeddings.position_embedding.weight": (eye.side**2, eye.width),
        "text_model.embed_tokens.weight": (text["vocabulary"], wide),
        "text_model.layers.0.self_attn.q_proj.weight": (text["heads"] * text["head"], wide),
        "text_model.layers.0.self_attn.k_proj.weight": (text["kv_heads"] * text["head"], wide),
    }
    lines = []
    for name, shape in expected.items():
        found = tensors.get(VLM + name)
        if found is not None and found.shape != shape:
            lines.append(f"{name} has shape {found.shape}, expected {shape}")
    return lines


def read_words(
    said: Said, folder: Folder, vlm: Vlm, name: str
) -> tuple[Tokenizer, int, tuple[int, ...]]:
    """The tokenizer, on the hub under `name` where nobody gives a folder, the id that pads, and the
    tokens around a picture. Raises ValueError where the
    tokenizer cannot be had, or is of another VLM."""
    place = words_folder(said) or vlm_folder(said)
    name = said.tokenizer or name
    if place is not None and said.tokenizer is None and (place / "tokenizer.json").is_file():
        name = str(place)
    try:
        tokenizer = fetch_tokenizer(name)
    except OSError as error:
        raise ValueError(
            f"{said.source}: the words of the checkpoint are those of {name!r}, which cannot be "
            f"had from the hub here; give a folder with its tokenizer.json as `tokenizer` in {FILE}"
        ) from error
    except Exception as error:  # the tokenizers' library raises nothing more special
        raise ValueError(f"{name}/tokenizer.json is no tokenizer ({error}); {COPY}") from error
    tokenizer.no_padding()  # padded and cut here, whatever the file says
    tokenizer.no_truncation()
    if tokenizer.get_vocab_size() > vlm.text["vocabulary"]:
        raise ValueError(
            f"{name}: the tokenizer has {tokenizer.get_vocab_size()} tokens, and the network "
            f"{vlm.text['vocabulary']}: it is of another VLM"
        )
    special = _special_tokens(place)
    pad = tokenizer.token_to_id(special["pad_token"]) if "pad_token" in special else None
    marks: tuple[int, ...] = ()
    if folder.fields.flag("add_image_special_tokens", False):
        ids = []
        for what, usual in (("fake_image_token", FAKE), ("global_image_token", GLOBAL)):
            token = special.get(what, usual)
            found = tokenizer.token_to_id(token)
            if found is None:
                raise ValueError(
                    f"{name}: the tokenizer has no {token!r}, which stands around a picture "
                    "(add_image_special_tokens); it is of another VLM"
                )
            ids.append(found)
        marks = (*ids, ids[0])  # two before a picture, one behind it
    return tokenizer, vlm.pad if pad is None else pad, marks


def _special_tokens(place: Path | None) -> dict[str, str]:
    """What `tokenizer_config.json` calls its special tokens, where there is one."""
    file = None if place is None else place / "tokenizer_config.json"
    if file is None or not file.is_file():
        return {}
    found = {}
    for name, value in read_json(file, fix=COPY).items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            found[name] = content
    return found
