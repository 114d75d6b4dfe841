"""What all tests of the model share."""

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    """On a busy machine two threads spend most of their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
