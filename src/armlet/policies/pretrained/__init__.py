"""Policies that other projects trained and saved: from their files to the contract of the house.

One file a kind, which names the layout on disk, its tensors and its network. `kinds` finds out which
kind a folder is of; `files` reads tensors and fills networks with them, loudly; `said` is what a
checkpoint does not say of itself, in `policy.toml`; `lerobot` reads the folders that LeRobot writes,
with their processors as data; `card` is what is known of a checkpoint from its headers alone.

No code of a checkpoint is run, no pickle is read but as `torch.load(weights_only=True)` reads it.
"""
