"""One thread a test process: what is compared to the bit must not depend on how work was shared out."""

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lerobot-python", help="a Python that has the real lerobot (make test-lerobot)")
