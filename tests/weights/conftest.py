"""Tests of weights on disk need torch, but no engine: seconds."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """These matrices are small: two threads would wait for each other."""
    torch.set_num_threads(1)
