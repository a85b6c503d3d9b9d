"One thread, no display, a seed before every test; the machine at the head of the report"
import os

os.environ.setdefault('MPLBACKEND', 'agg')

import pytest
import torch

import lessons

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption('--robust', action='store_true', help='lessons in every variant of tests/lessons.py, not in '
                     'one: --robust -k "another_machine and 05c"')

def pytest_sessionstart(session):   # with -q pytest leaves out what a report header says
    reporter = session.config.pluginmanager.get_plugin('terminalreporter')
    if reporter: reporter.write_line(lessons.machine())

@pytest.fixture(autouse=True)
def seeded():
    "Every test starts from the same random state"
    from minifast.core import set_seed
    set_seed(42)
