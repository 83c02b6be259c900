"""OpenVLA, run folder: `run/` of a fixture, and `llama_hub/`, what the original takes of Llama-2."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from golden import Line

from armlet.policies.pretrained.openvla_folders import checkpoints_of
from goldens.openvla_cases import Variant, lines


def compare(folder: Path) -> Iterator[Line]:
    options: dict[str, Any] = {}
    hub = folder / "llama_hub"
    words = hub if (hub / "tokenizer.json").is_file() else None
    if not (hub / "config.json").is_file():  # then its sizes say what no shape tells
        llm = json.loads((folder / "golden.json").read_text())["sizes"]["llm"]
        options["llm_heads"] = llm["num_attention_heads"]
        options["llm_kv_heads"] = llm["num_key_value_heads"]
        options["rms_norm_eps"] = llm["rms_norm_eps"]
    run = folder / "run"
    there = checkpoints_of(run)
    if len(there) > 1:
        options["weights"] = there[-1].name
    return lines(Variant(folder, run, "prismatic_openvla", words, options))
