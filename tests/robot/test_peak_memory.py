"""The memory of a process is its own, and without torch."""

import multiprocessing

import numpy as np

from armlet.robot import resident


def test_what_started_a_process_counts_not_in_its_memory(own_memory) -> None:
    held = np.ones(50_000_000)  # 400 MB, touched
    here = resident.peak_mb()
    assert here > 400 and held.any()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(resident.peak_mb)
    # Python, numpy and the tokenizers.
    assert 10 < there < 300
