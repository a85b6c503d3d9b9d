"One thread, no display, and a seed before every test"
import os

os.environ.setdefault('MPLBACKEND', 'agg')

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    "Every test starts from the same random state"
    from minifast.core import set_seed
    set_seed(42)
