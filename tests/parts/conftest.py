"""What several files of these tests use."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """For models too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
