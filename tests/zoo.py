"""A zoo of small networks, each written after its paper, with data that it learns in about a second, and ways to
make it ill, one at a time, each with what a diagnosis ought to say.

`NETS` has the ones that thresholds may be chosen by, `APART` those that were only looked at afterwards."""
import math
from functools import partial
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn, optim

from minifast.callback import Callback
from minifast.cnn import get_cnn_model, get_runner
from minifast.core import set_seed
from minifast.data import DataBunch, DataLoader, Dataset
from minifast.init import conv_layer, init_cnn
from minifast.norm import BatchNorm

N, CLASSES = 256, 4


# --- data: each item belongs to one of four kinds, which differ in a pattern

def normalised(x): return (x - x.mean())/x.std()

def pictures(c=3, size=16):
    "Four patterns of smooth colours, moved about by up to two pixels, with noise"
    pats = F.interpolate(torch.randn(CLASSES, c, 4, 4), size=(size, size), mode='bicubic')
    y = torch.arange(N) % CLASSES
    x = torch.stack([o.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), (1, 2)) for o in pats[y]])
    return normalised(x + .5*torch.randn_like(x)), y

def rows(n=32):
    "Four clouds"
    y = torch.arange(N) % CLASSES
    return normalised(torch.randn(CLASSES, n)[y] + torch.randn(N, n)), y

def signals(steps=16, n=6):
    "Waves of four frequencies, beginning anywhere, on some channels"
    y = torch.arange(N) % CLASSES
    t = torch.arange(steps)[None, :, None] + 9*torch.rand(N, 1, 1)
    x = torch.sin(t*(.3 + .5*y[:, None, None]))*torch.linspace(.5, 1.5, n)
    return normalised(x + .2*torch.randn_like(x)), y

def texts(steps=16, vocab=24):
    "Words, half of them from the quarter of the vocabulary that belongs to the kind"
    y = torch.arange(N) % CLASSES
    own = torch.randint(0, vocab//CLASSES, (N, steps)) + y[:, None]*(vocab//CLASSES)
    return torch.where(torch.rand(N, steps) < .5, own, torch.randint(0, vocab, (N, steps))), y

def next_words(steps=16, vocab=24):
    "Each word is followed by one that depends on it, but for one in ten"
    follow, x = torch.randperm(vocab), torch.randint(0, vocab, (N, 1))
    for _ in range(steps):
        new = torch.where(torch.rand(N, 1) < .9, follow[x[:, -1:]], torch.randint(0, vocab, (N, 1)))
        x = torch.cat([x, new], 1)
    return x[:, :-1], x[:, 1:]

def copies(): x = pictures(1)[0]; return x, x
def masks():
    "Which pixels lie in the bright part of the pattern?"
    x, _ = pictures()
    return x, (F.avg_pool2d(x, 3, 1, 1).sum(1) > .5).long()
def numbers(mean, scale):
    "A smooth function of a row, its values around `mean`, `scale` wide"
    x, _ = rows(16)
    y = torch.tanh(x @ torch.randn(16, 3)/4).sum(1, keepdim=True)
    return x, normalised(y)*scale + mean
def ratings(users=40, items=30):
    "What users give to items: three tastes and what everybody thinks of both"
    ids = torch.stack([torch.randint(0, users, (N,)), torch.randint(0, items, (N,))], 1)
    taste, kind = torch.randn(users, 3), torch.randn(items, 3)
    return ids, 3 + (taste[ids[:, 0]]*kind[ids[:, 1]]).sum(1)*.5 + .1*torch.randn(N)

def alike(z, y):
    "Those of one kind belong together: InfoNCE over a batch (van den Oord et al. 2018)"
    z = F.normalize(z, dim=1)
    scores = (z @ z.T/.2).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e4)
    same = (y[:, None] == y).float().fill_diagonal_(0)
    return -(scores.log_softmax(1)*same).sum()/same.sum()
def word_loss(pred, y): return F.cross_entropy(pred.flatten(0, 1), y.flatten())


# --- networks

def kaiming(net, gain=2**.5):
    for m in net.modules():
        if not isinstance(m, (nn.Linear, nn.Conv2d)): continue
        nn.init.normal_(m.weight, 0, gain/m.weight[0].numel()**.5)
        if m.bias is not None: nn.init.zeros_(m.bias)
    return net

def trunc02(net):
    "As vision transformers begin: small normal weights, no biases"
    for m in net.modules():
        if not isinstance(m, (nn.Linear, nn.Conv2d, nn.Embedding)): continue
        nn.init.trunc_normal_(m.weight, std=.02)
        if getattr(m, 'bias', None) is not None: nn.init.zeros_(m.bias)
    return net

def conv(ni, nf, ks=3, stride=1, **kw): return nn.Conv2d(ni, nf, ks, stride, ks//2, bias=False, **kw)

class Residual(nn.Module):
    "He et al. 2015: a basic block. `zero`: the last norm begins at 0 (Goyal et al. 2017)"
    def __init__(self, ni, nf, stride=1, zero=False):
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(ni, nf, 3, stride), nn.BatchNorm2d(nf), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(nf, nf), nn.BatchNorm2d(nf)
        same = ni == nf and stride == 1
        self.down = nn.Identity() if same else nn.Sequential(conv(ni, nf, 1, stride), nn.BatchNorm2d(nf))
        if zero: nn.init.zeros_(self.bn2.weight)
    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.down(x))

def resnet(zero=False):
    blocks = [Residual(16, 16, 1, zero), Residual(16, 16, 1, zero), Residual(16, 32, 2, zero), Residual(32, 32, 1, zero)]
    net = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(inplace=True), *blocks, nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(32, CLASSES))
    for m in net.modules():
        if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')
    return net

class Attention(nn.Module):
    def __init__(self, dim, heads=4, causal=False):
        super().__init__()
        self.qkv, self.proj, self.drop = nn.Linear(dim, 3*dim), nn.Linear(dim, dim), nn.Dropout(0.)
        self.heads, self.causal = heads, causal
    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2)/(d//self.heads)**.5
        if self.causal: scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
        return self.drop(self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d)))

class Mlp(nn.Module):
    def __init__(self, dim, nh, act=nn.GELU):
        super().__init__()
        self.fc1, self.act, self.drop, self.fc2 = nn.Linear(dim, nh), act(), nn.Dropout(0.), nn.Linear(nh, dim)
    def forward(self, x): return self.fc2(self.drop(self.act(self.fc1(x))))

class Block(nn.Module):
    "Vaswani et al. 2017 (norms after the sum); Xiong et al. 2020 (before the branches)"
    def __init__(self, dim, pre=True, act=nn.GELU, **kw):
        super().__init__()
        self.norm1, self.attn, self.path = nn.LayerNorm(dim), Attention(dim, **kw), nn.Identity()
        self.norm2, self.mlp, self.pre = nn.LayerNorm(dim), Mlp(dim, 2*dim, act), pre
    def forward(self, x):
        if self.pre:
            x = x + self.path(self.attn(self.norm1(x)))
            return x + self.path(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))

class Words(nn.Module):
    "Tokens to a class, or to the next token with tied weights (Radford et al. 2019)"
    def __init__(self, pre=True, depth=4, dim=32, vocab=24, lm=False, **kw):
        super().__init__()
        self.emb, self.pos = nn.Embedding(vocab, dim), nn.Parameter(.02*torch.randn(16, dim))
        self.blocks = nn.Sequential(*[Block(dim, pre, causal=lm, **kw) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim) if pre else nn.Identity()
        self.head = nn.Linear(dim, vocab if lm else CLASSES, bias=not lm)
        self.lm = lm
    def forward(self, x):
        x = self.norm(self.blocks(self.emb(x) + self.pos))
        return self.head(x if self.lm else x.mean(1))

def gpt():
    net = trunc02(Words(lm=True))
    for b in net.blocks:
        for m in (b.attn.proj, b.mlp.fc2): nn.init.normal_(m.weight, 0, .02/8**.5)
    net.head.weight = net.emb.weight
    return net

class TorchEncoder(nn.Module):
    "PyTorch's own layers; its attention uses its projection's weights and doesn't call it"
    def __init__(self, dim=32):
        super().__init__()
        self.emb, self.pos = nn.Embedding(24, dim), nn.Parameter(.02*torch.randn(16, dim))
        self.enc = nn.Sequential(*[nn.TransformerEncoderLayer(dim, 4, 2*dim, 0., batch_first=True) for _ in range(3)])
        self.head = nn.Linear(dim, CLASSES)
    def forward(self, x): return self.head(self.enc(self.emb(x) + self.pos).mean(1))

class Vit(nn.Module):
    "Dosovitskiy et al. 2020"
    def __init__(self, dim=48, depth=4):
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, dim, 4, 4), nn.Parameter(torch.zeros(1, 1, dim))
        self.pos = nn.Parameter(.02*torch.randn(1, 17, dim))
        self.blocks = nn.Sequential(*[Block(dim) for _ in range(depth)])
        self.norm, self.head_drop, self.head = nn.LayerNorm(dim), nn.Dropout(0.), nn.Linear(dim, CLASSES)
        trunc02(self)
    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        return self.head(self.head_drop(self.norm(self.blocks(x))[:, 0]))

class MixerBlock(nn.Module):
    "Tolstikhin et al. 2021"
    def __init__(self, tokens, dim):
        super().__init__()
        self.norm1, self.tokens = nn.LayerNorm(dim), Mlp(tokens, 2*tokens)
        self.norm2, self.channels = nn.LayerNorm(dim), Mlp(dim, 2*dim)
    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))

class Mixer(nn.Module):
    def __init__(self, dim=48, depth=4):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.blocks = nn.Sequential(*[MixerBlock(16, dim) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, CLASSES)
    def forward(self, x):
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(1))

class Norm2d(nn.LayerNorm):
    def forward(self, x): return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

class Scale(nn.Module):
    "Touvron et al. 2021: what a branch adds begins at nearly nothing"
    def __init__(self, dim, init=1e-6):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))
    def forward(self, x): return x*self.gamma

class NextBlock(nn.Module):
    "Liu et al. 2022"
    def __init__(self, dim):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim)
        self.mlp, self.scale, self.path = Mlp(dim, 4*dim), Scale(dim), nn.Identity()
    def forward(self, x):
        out = self.scale(self.mlp(self.norm(self.dwconv(x).permute(0, 2, 3, 1))))
        return x + self.path(out.permute(0, 3, 1, 2))

def convnext():
    stages = nn.Sequential(NextBlock(24), NextBlock(24), Norm2d(24), nn.Conv2d(24, 32, 2, 2), NextBlock(32), NextBlock(32))
    return trunc02(nn.Sequential(nn.Conv2d(3, 24, 2, 2), Norm2d(24), stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                 nn.LayerNorm(32), nn.Linear(32, CLASSES)))

class Squeeze(nn.Module):
    "Hu et al. 2017: gates for the channels"
    def __init__(self, n):
        super().__init__()
        self.reduce, self.act, self.expand, self.gate = nn.Conv2d(n, n//4, 1), nn.SiLU(), nn.Conv2d(n//4, n, 1), nn.Sigmoid()
    def forward(self, x): return x*self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))

class Inverted(nn.Module):
    "Sandler et al. 2018"
    def __init__(self, ni, nf, stride=1, se=False):
        super().__init__()
        nh, self.skip = 4*ni, ni == nf and stride == 1
        self.expand = nn.Sequential(conv(ni, nh, 1), nn.BatchNorm2d(nh), nn.ReLU6())
        self.depth = nn.Sequential(conv(nh, nh, 3, stride, groups=nh), nn.BatchNorm2d(nh), nn.ReLU6())
        self.se = Squeeze(nh) if se else nn.Identity()
        self.project = nn.Sequential(conv(nh, nf, 1), nn.BatchNorm2d(nf))
    def forward(self, x):
        out = self.project(self.se(self.depth(self.expand(x))))
        return x + out if self.skip else out

def inverted(se=False):
    blocks = nn.Sequential(Inverted(12, 12, se=se), Inverted(12, 20, 2, se), Inverted(20, 20, se=se), Inverted(20, 20, se=se))
    return nn.Sequential(conv(3, 12), nn.BatchNorm2d(12), nn.ReLU6(), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Dropout(.1), nn.Linear(20, CLASSES))

class Recurrent(nn.Module):
    "Hochreiter, Schmidhuber 1997; Cho et al. 2014: from signals or, with an embedding, from words"
    def __init__(self, kind, ni=6, nh=32, vocab=None, **kw):
        super().__init__()
        self.emb = nn.Embedding(vocab, ni) if vocab else nn.Identity()
        self.rnn = kind(ni, nh, batch_first=True, **kw)
        self.head = nn.Linear(nh*(2 if kw.get('bidirectional') else 1), CLASSES)
    def forward(self, x): return self.head(self.rnn(self.emb(x))[0].mean(1))

def autoencoder():
    def down(ni, nf): return nn.Sequential(nn.Conv2d(ni, nf, 3, 2, 1), nn.ReLU())
    def up(ni, nf): return nn.Sequential(nn.ConvTranspose2d(ni, nf, 4, 2, 1), nn.ReLU())
    return init_cnn(nn.Sequential(
        down(1, 16), down(16, 32), nn.Flatten(), nn.Linear(512, 16), nn.Linear(16, 512), nn.ReLU(), nn.Unflatten(1, (32, 4, 4)),
        up(32, 16), nn.ConvTranspose2d(16, 1, 4, 2, 1)))

class Plain(nn.Module):
    "Layers without any norm, and an activation that isn't a module"
    def __init__(self, sizes, act=F.relu, gain=2**.5):
        super().__init__()
        self.layers, self.act = nn.ModuleList([nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])]), act
        kaiming(self, gain)
    def forward(self, x):
        for m in self.layers[:-1]: x = self.act(m(x))
        return self.layers[-1](x)

def mlp(act=nn.ReLU, depth=5, gain=2**.5, ni=32, no=CLASSES, nh=48):
    sizes = [ni] + [nh]*depth
    hidden = [o for a, b in zip(sizes, sizes[1:]) for o in (nn.Linear(a, b), act())]
    return kaiming(nn.Sequential(*hidden, nn.Linear(nh, no)), gain)

class Taste(nn.Module):
    "Koren et al. 2009: products of two embeddings"
    def __init__(self, users=40, items=30, n=6):
        super().__init__()
        self.user, self.item = nn.Embedding(users, n), nn.Embedding(items, n)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for m in (self.user, self.item): nn.init.normal_(m.weight, 0, .3)
        for m in (self.user_bias, self.item_bias): nn.init.zeros_(m.weight)
        self.mean = nn.Parameter(torch.zeros(1))
    def forward(self, ids):
        u, i = ids.T
        return (self.user(u)*self.item(i)).sum(1) + self.user_bias(u)[:, 0] + self.item_bias(i)[:, 0] + self.mean

def lesson(**kw):
    "The CNN of the lessons: for pictures of 28 pixels in them, of 16 here"
    data = DataBunch(DataLoader(Dataset(*pictures(1)), 32), None, CLASSES)
    return init_cnn(get_cnn_model(data, [8, 16, 32, 32], conv_layer, **kw))

class Dense(nn.Module):
    "Huang et al. 2016: each layer gets what all before it gave"
    def __init__(self, n=12, depth=5):
        super().__init__()
        self.stem = conv(3, n, 3, 2)
        self.layers = nn.ModuleList([nn.Sequential(nn.BatchNorm2d(n*(i+1)), nn.ReLU(), conv(n*(i+1), n)) for i in range(depth)])
        self.norm, self.head = nn.BatchNorm2d(n*(depth+1)), nn.Linear(n*(depth+1), CLASSES)
    def forward(self, x):
        x = self.stem(x)
        for m in self.layers: x = torch.cat([x, m(x)], 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))

class Unet(nn.Module):
    "Ronneberger et al. 2015, with group norm and SiLU as diffusion models have it"
    def __init__(self, n=16):
        super().__init__()
        def double(ni, nf): return nn.Sequential(nn.Conv2d(ni, nf, 3, padding=1), nn.GroupNorm(4, nf), nn.SiLU(),
                                                 nn.Conv2d(nf, nf, 3, padding=1), nn.GroupNorm(4, nf), nn.SiLU())
        self.down1, self.down2, self.mid = double(3, n), double(n, 2*n), double(2*n, 2*n)
        self.up2, self.up1, self.head = double(4*n, n), double(2*n, n), nn.Conv2d(n, 2, 1)
    def forward(self, x):
        a = self.down1(x); b = self.down2(F.max_pool2d(a, 2)); c = self.mid(F.max_pool2d(b, 2))
        x = self.up2(torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        return self.head(self.up1(torch.cat([F.interpolate(x, scale_factor=2), a], 1)))


# --- a net with its data, its loss, sensible rates, and the places where it is made ill

class Net(NamedTuple):
    make:Callable
    data:Callable        # () -> (x, y)
    sgd:tuple            # two sensible rates, with momentum .9
    adam:tuple           # two for AdamW
    layer:str            # a layer in the middle: its weights are made ill
    cut:str              # a module in the middle: nothing before it is reached if its output is detached
    loss:Callable=F.cross_entropy
    before:tuple=()      # first words of the names of what lies before `cut`, `cut` itself included
    gate:str=''          # what has a bias before a rectifier that nothing lies between
    branch:str=''        # a residual branch
    normed:bool=False    # is `layer` followed by a norm, so that its scale doesn't matter?

def images(make, sgd, adam, *args, **kw): return Net(make, pictures, sgd, adam, *args, **kw)

NETS = {
    'resnet': images(resnet, (.02, .1), (.001, .01), '4.conv1', '4', before=('0', '1', '3', '4'), gate='4.bn1', branch='4.bn2', normed=True),
    'resnet zero': images(partial(resnet, True), (.03, .1), (.003, .01), '4.conv1', '4', before=('0', '1', '3', '4'), gate='4.bn1', branch='4.bn2', normed=True),
    'pre-norm': Net(Words, texts, (.01, .03), (.001, .005), 'blocks.1.mlp.fc1', 'blocks.1', before=('emb', 'blocks.0', 'blocks.1'), gate='blocks.1.mlp.fc1', branch='blocks.1.mlp'),
    'post-norm': Net(partial(Words, False, act=nn.ReLU), texts, (.01, .03), (.001, .003), 'blocks.1.mlp.fc1', 'blocks.1', before=('emb', 'blocks.0', 'blocks.1'), gate='blocks.1.mlp.fc1', branch='blocks.1.mlp'),
    'encoder': Net(TorchEncoder, texts, (.01, .03), (.001, .003), 'enc.1.linear1', 'enc.1', before=('emb', 'enc.0', 'enc.1'), gate='enc.1.linear1'),
    'vit': images(Vit, (.01, .02), (.001, .005), 'blocks.1.mlp.fc1', 'blocks.1', before=('patch', 'blocks.0', 'blocks.1'), gate='blocks.1.mlp.fc1', branch='blocks.1.mlp'),
    'mixer': images(Mixer, (.02, .1), (.001, .005), 'blocks.1.channels.fc1', 'blocks.1', before=('patch', 'blocks.0', 'blocks.1'), gate='blocks.1.channels.fc1', branch='blocks.1.channels'),
    'convnext': images(convnext, (.02, .1), (.001, .005), '2.1.mlp.fc1', '2.1', before=('0', '1', '2.0', '2.1'), gate='2.1.mlp.fc1', branch='2.1.mlp'),
    'inverted': images(inverted, (.02, .1), (.002, .01), '3.2.expand.0', '3.1', before=('0', '1', '3.0', '3.1'), gate='3.2.expand.1', branch='3.2.project', normed=True),
    'lstm': Net(partial(Recurrent, nn.LSTM), signals, (.3, 1.), (.003, .01), 'rnn', 'rnn', before=('rnn',)),
    'gru': Net(partial(Recurrent, nn.GRU, ni=16, vocab=24), texts, (.1, .5), (.003, .01), 'rnn', 'rnn', before=('emb', 'rnn')),
    'autoencoder': Net(autoencoder, copies, (.1, .2), (.002, .005), '1.0', '3', F.mse_loss, before=('0', '1', '3'), gate='1.0'),
    'small numbers': Net(partial(mlp, ni=16, no=1, depth=3), partial(numbers, 0, .01), (.01, .03), (.001, .003), '2', '2', F.mse_loss, before=('0', '2'), gate='2'),
    'large numbers': Net(partial(mlp, ni=16, no=1, depth=3), partial(numbers, 50, 20), (3e-5, 1e-4), (.003, .01), '2', '2', F.mse_loss, before=('0', '2'), gate='2'),
    'taste': Net(Taste, ratings, (.05, .1), (.01, .03), 'item', 'user', F.mse_loss, before=('user',)),
    'mlp': Net(mlp, rows, (.01, .03), (.001, .003), '4', '4', before=('0', '2', '4'), gate='4'),
    'tanh': Net(partial(mlp, nn.Tanh, gain=1.), rows, (.01, .05), (.001, .003), '4', '4', before=('0', '2', '4')),
    'functional': Net(partial(Plain, [32, 64, 64, 64, CLASSES]), rows, (.01, .03), (.001, .003), 'layers.1', 'layers.1', before=('layers.0', 'layers.1'), gate='layers.1'),
    'lesson': Net(partial(lesson, leak=.1, sub=.4, maxv=6.), partial(pictures, 1), (.02, .05), (.001, .005), '1.0', '1', before=('0', '1')),
    'lesson relu': Net(lesson, partial(pictures, 1), (.01, .03), (.001, .005), '1.0', '1', before=('0', '1'), gate='1.0'),
    'lesson norm': Net(partial(lesson, norm=BatchNorm), partial(pictures, 1), (.05, .2), (.002, .01), '1.0', '1', before=('0', '1'))}

APART = {
    'dense': images(Dense, (.02, .1), (.001, .005), 'layers.2.2', 'layers.2', gate='layers.2.0'),
    'gpt': Net(gpt, next_words, (.1, .3), (.002, .01), 'blocks.1.mlp.fc1', 'blocks.1', word_loss, before=('emb', 'blocks.0', 'blocks.1'), gate='blocks.1.mlp.fc1', branch='blocks.1.mlp'),
    'unet': Net(Unet, masks, (.02, .1), (.001, .005), 'mid.0', 'mid', before=('mid',), normed=True),
    'two lstms': Net(partial(Recurrent, nn.LSTM, num_layers=2, bidirectional=True), signals, (.5, 1.), (.003, .01), 'rnn', 'rnn', before=('rnn',)),
    'contrast': Net(partial(mlp, no=16, depth=3), rows, (.01, .05), (.002, .005), '2', '2', alike, before=('0', '2'), gate='2'),
    'squeeze': images(partial(inverted, True), (.02, .1), (.002, .01), '3.2.expand.0', '3.1', before=('0', '1', '3.0', '3.1'), gate='3.2.expand.1', branch='3.2.project', normed=True),
    'selu': Net(partial(mlp, nn.SELU, depth=8, gain=1.), rows, (.005, .02), (.001, .003), '4', '4', before=('0', '2', '4'))}


# --- training

class Training(NamedTuple):
    net:Net
    learn:object
    run:object

def prepare(net, seed, opt='sgd', rate=0, cbs=(), bs=16, **kw):
    "A Learner and a Runner for `net`, with data and weights drawn from `seed`"
    set_seed(seed)
    x, y = net.data()
    model = net.make()
    data = DataBunch(DataLoader(Dataset(x, y), bs, shuffle=True), None, CLASSES)
    func = partial(optim.SGD, momentum=.9) if opt == 'sgd' else optim.AdamW
    learn, run = get_runner(model, data, lr=(net.sgd if opt == 'sgd' else net.adam)[rate], loss_func=net.loss,
                            cbs=cbs, opt_func=partial(func, **kw))
    return Training(net, learn, run)


# --- made ill, one illness at a time

class At(Callback):
    "`begin_batch`: does `f` before batch `it`"
    def __init__(self, it, f): self.it, self.f = it, f
    def begin_batch(self):
        if self.n_iter == self.it: self.f()

class Verdict(NamedTuple):
    "What ought to be said"
    cause:str          # '' for nothing; of two the one or the other
    places:tuple = ()  # first words of the names among which the first place is; () for any
    since:int = 0
    may:bool = False   # is silence right too, since it may do no harm?

def weights(m): return [p for n, p in m.named_parameters() if p.ndim > 1 and 'weight' in n]
def scale(m, by):
    with torch.no_grad():
        for p in weights(m): p.mul_(by)
def fill(m, value):
    with torch.no_grad():
        for p in weights(m): p.fill_(value)
def set_bias(m, value):
    with torch.no_grad(): m.bias.fill_(value)
def detach(m): m.register_forward_hook(lambda m, inp, outp: (outp[0].detach(), outp[1]) if isinstance(outp, tuple) else outp.detach())
def at(t, it, f): t.run.add_cb(At(it, f))
def dataset(t): return t.learn.data.train_ds
def module(t, name): return t.learn.model.get_submodule(name)
def set_rate(t, by):
    for g in t.learn.opt.param_groups: g['lr'] *= by

def rate_high(t): set_rate(t, 1000.); return Verdict('rate too high')
def rate_low(t): set_rate(t, 1e-6); return Verdict('rate too low')
def weight_decay(t):
    for g in t.learn.opt.param_groups: g['weight_decay'] = 1.
    small = t.learn.opt.param_groups[0]['lr'] < .005 or t.net.make is Taste   # the loss is stronger
    return Verdict('weight decay', may=small)
def dead(t):
    if not t.net.gate: return None
    at(t, 12, lambda: set_bias(module(t, t.net.gate), -100.))
    return Verdict('dead', (t.net.gate, 'after'), 12)
def bias_10(t):
    if not t.net.gate: return None
    set_bias(module(t, t.net.gate), -10.)
    return Verdict('dead', (t.net.gate, 'after'))
def gates(t):
    m = module(t, t.net.layer)
    if not isinstance(m, (nn.RNNBase, nn.Linear)) or isinstance(m, nn.Linear) and nn.Tanh not in map(type, t.learn.model.children()): return None
    scale(m, 100.)
    return Verdict('saturated or scale', (t.net.layer, 'after'))
def layer_times_10(t):
    scale(module(t, t.net.layer), 10.)
    return Verdict('scale', (t.net.layer,), may=t.net.normed or t.net.make in (Taste, convnext))
def layer_over_10(t): scale(module(t, t.net.layer), .1); return Verdict('scale', (t.net.layer,), may=True)
def all_times_10(t):
    scale(t.learn.model, 10.)
    return Verdict('scale or saturated', may=t.net.make in (Vit, gpt, convnext, Taste))   # they began far below 1
def all_over_10(t): scale(t.learn.model, .1); return Verdict('scale', may=True)
def frozen(t):
    if t.net.layer == 'rnn' and not isinstance(t.learn.model.emb, nn.Embedding): return None   # the first layer
    module(t, t.net.layer).requires_grad_(False)
    table = isinstance(module(t, t.net.layer), nn.Embedding)   # nothing lies before it: on purpose, maybe
    return Verdict('frozen', (t.net.layer,), may=table)
def left_out(t):
    if frozen(t) is None: return None
    own = set(module(t, t.net.layer).requires_grad_(True).parameters())
    for g in t.learn.opt.param_groups: g['params'] = [p for p in g['params'] if p not in own]
    return Verdict('frozen', (t.net.layer,))
def detached(t):
    if not t.net.before: return None
    detach(module(t, t.net.cut))
    return Verdict('no gradient', t.net.before)
def branch_detached(t):
    if not t.net.branch: return None
    detach(module(t, t.net.branch))
    return Verdict('no gradient', (t.net.branch.rsplit('.', 1)[0],))
def labels(t):
    dataset(t).y = dataset(t).y[torch.randperm(N)]
    return Verdict('')
def inputs_255(t):
    if not dataset(t).x.is_floating_point(): return None
    dataset(t).x = dataset(t).x*64 + 128
    return Verdict('inputs')
def inputs_100(t):
    if not dataset(t).x.is_floating_point(): return None
    dataset(t).x = dataset(t).x + 100
    return Verdict('inputs')
def nan(t):
    at(t, 12, lambda: fill(module(t, t.net.layer), math.nan))
    return Verdict('not finite', (t.net.layer,), 12)

ILLS = {f.__name__: f for f in (rate_high, rate_low, dead, bias_10, gates, layer_times_10, layer_over_10, all_times_10,
                                all_over_10, frozen, left_out, detached, branch_detached, labels, inputs_255, inputs_100,
                                nan, weight_decay)}
