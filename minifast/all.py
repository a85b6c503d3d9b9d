"The notebook's door: every lesson's names in order, and what cells of 2019 take for granted"
import math
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn, optim, tensor
from torch.nn import init

from .core import *
from .plot import *
from .losses import *
from .data import *
from .learner import *
from .files import *
from .callback import *
from .loop import *
from .runner import *
from .sweep import *
from .sched import *
from .gradients import *
from .safe_hooks import *
from .cnn import *
from .hooks import *
from .telemetry import *
from .diagnosis import *
from .summary import *
from .hook_callbacks import *
from .init import *
from .norm_backward import *
from .norm import *
from .norms import *
from .lsuv import *
from .check import check, hint, progress, solution
