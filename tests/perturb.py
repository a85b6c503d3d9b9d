"""Another machine, as far as one can be had on this one. Runs at the start of a lesson's kernel and reads

    MINIFAST_SEED_SHIFT=1000   every seed that is set, in whatever way, is 1000 higher
    MINIFAST_NOISE=1           the parameters of every fresh layer are off by up to a millionth, as another
                               processor's rounding would have them after some steps: by the same for layers
                               of the same shape, so that two ways of training start from equal weights
    MINIFAST_ONEDNN=0          PyTorch's own kernels in place of oneDNN's

It changes what it needs in `torch`, `numpy` and `random`; the package knows nothing of it."""
import functools
import os
import random

import numpy as np
import torch
from torch.nn import init

SCALE = 1e-6   # below the 1.3e-6 that assert_close allows to float32
CONSTANT = {'constant_', 'ones_', 'zeros_', 'eye_', 'dirac_'}   # these are what they are on any machine


def shifted(seed, shift): return (int(seed) + shift) % 2**32

def shift_seeds(shift):
    "From here on every seed that is set is `shift` higher"
    def later(f): return functools.wraps(f)(lambda n=0, *args, **kw: f(shifted(n, shift), *args, **kw))
    class Generator(torch.Generator):
        def manual_seed(self, n): return super().manual_seed(shifted(n, shift))
    torch.Generator = Generator
    torch.manual_seed, random.seed, np.random.seed = map(later, (torch.manual_seed, random.seed, np.random.seed))
    np.random.default_rng = later(np.random.default_rng)

def add_noise(seed):
    "From here on what `torch.nn.init` fills with random numbers is off by up to `SCALE`"
    def noisy(f):
        @functools.wraps(f)
        def fill(tensor, *args, **kw):
            res = f(tensor, *args, **kw)
            if tensor.is_meta: return res
            gen = torch._C.Generator().manual_seed(seed)   # of its own: the lesson's numbers stay as they are
            noise = torch.rand(tensor.shape, generator=gen, dtype=torch.float64)*2 - 1
            with torch.no_grad(): tensor.mul_((1 + SCALE*noise).to(tensor))
            return res
        return fill
    for name in dir(init):
        if name.endswith('_') and not name.startswith('_') and name not in CONSTANT:
            setattr(init, name, noisy(getattr(init, name)))

def apply(env=os.environ):
    if n := int(env.get('MINIFAST_SEED_SHIFT', 0)): shift_seeds(n)
    if n := int(env.get('MINIFAST_NOISE', 0)): add_noise(n)
    if env.get('MINIFAST_ONEDNN') == '0': torch._C._set_mkldnn_enabled(False)

if __name__ == '__main__': apply()
