"""Policies: images, words and state in, a chunk of actions out. The contract is `contract.py`; one
file a network."""
