"""PaliGemma's tokenizer, whose words π0 and π0.5 read (how: robot/reading/paligemma.py)."""

from pathlib import Path

from tokenizers import Tokenizer

from armlet.robot.reading.paligemma import BEGIN

PALIGEMMA = "google/paligemma-3b-pt-224"  # whose words all of them read


def open_tokenizer(name: str) -> Tokenizer:
    """PaliGemma's tokenizer: a folder or a file, or a name on the hub. Raises ValueError where it
    cannot be had, or is of another kind."""
    from huggingface_hub import hf_hub_download  # only where a name is not a folder

    place = Path(name)
    local = place / "tokenizer.json" if place.is_dir() else place
    try:
        path = local if local.is_file() else Path(hf_hub_download(name, "tokenizer.json"))
    except Exception as error:  # no network, no such name, no leave (it is gated): all alike here
        raise ValueError(
            f"the tokenizer {name!r} cannot be had here ({type(error).__name__}); give `tokenizer` "
            "in policy.toml, a folder with PaliGemma's tokenizer.json, or log in to the hub, where "
            f"{PALIGEMMA} asks for its licence to be accepted"
        ) from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"{path} is no tokenizer ({error}); copy it again") from error
    if tokenizer.token_to_id(BEGIN) is None:
        raise ValueError(
            f"{path} has no token {BEGIN!r}, with which every prompt begins: it is not "
            "PaliGemma's; name that in `tokenizer` in policy.toml"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
