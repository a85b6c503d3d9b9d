"""What a notebook's cells depend on: found by following names from where a training, or a clock, enters.

A cell is 'trained' if it trains, or reads what came of a training; 'measured' if it reads a clock or counts
memory, or what came of that; else 'fixed': then it says the same on every machine."""
import ast
import re

from IPython.core.inputtransformer2 import TransformerManager

CLOCKS = {'perf_counter', 'process_time', 'thread_time', 'monotonic', 'timeit', 'default_timer', 'time',
          'get_traced_memory', 'getrusage', 'max_memory_allocated'}
TRAIN = {'fit', 'one_epoch', 'all_batches', 'one_batch'}
DATA = re.compile(r'data$|.*_?(dl|ds)s?$|[xy](b|s|_\w+)?$|ims?$')   # what a training reads and leaves as it is


def parse(src):
    "The syntax tree of a cell; magics become calls, and a cell that isn't Python is empty"
    try: return ast.parse(TransformerManager().transform_cell(src))
    except SyntaxError: return ast.parse('')

def last_name(o): return getattr(o, 'attr', getattr(o, 'id', ''))

def trains(o):
    "Does `o` itself change weights: fit(), opt.step(), or an update by hand with `.grad`?"
    grad = any(isinstance(n, ast.Attribute) and n.attr == 'grad' for n in ast.walk(o))
    if isinstance(o, ast.AugAssign): return grad
    if not isinstance(o, ast.Call): return False
    name, of = last_name(o.func), last_name(getattr(o.func, 'value', None))
    if name == 'step': return bool(re.search(r'opt|sgd|adam', of, re.I))
    return name in TRAIN or grad and name in ('sub_', 'add_', 'copy_')

def measures(o):
    "Does `o` itself read a clock, or count memory?"
    if isinstance(o, ast.Subscript): return getattr(o.slice, 'value', '') == 'seconds'   # a column of the table
    if isinstance(o, ast.Call) and last_name(o.func) in ('run_line_magic', 'run_cell_magic'):
        return getattr(o.args[0], 'value', '').startswith('time')
    return isinstance(o, ast.Call) and last_name(o.func) in CLOCKS

DEFS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
SCOPES = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, *DEFS[:2]

def executed(o):
    "The nodes that run when `o` does: the bodies of functions don't, those of a class and of a lambda do"
    yield o
    if isinstance(o, DEFS[:2]): return
    for sub in ast.iter_child_nodes(o): yield from executed(sub)

def stored(o):
    "The names that `o` binds where it stands, not those of a scope within it"
    if isinstance(o, DEFS): yield o.name
    elif isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store): yield o.id
    elif isinstance(o, ast.alias): yield (o.asname or o.name).split('.')[0]
    elif not isinstance(o, SCOPES):
        for sub in ast.iter_child_nodes(o): yield from stored(sub)

def local(o):
    "The names that belong to the scope `o` alone"
    args = {a.arg for a in ast.walk(o.args) if isinstance(a, ast.arg)} if hasattr(o, 'args') else set()
    inside = getattr(o, 'generators', None) or (o.body if isinstance(o.body, list) else [])
    return args | {n for sub in inside for n in stored(sub)}

def read(o, own=frozenset()):
    "The names that `o` reads, without the variables of functions and comprehensions in it"
    if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Load) and o.id not in own: yield o.id
    if isinstance(o, SCOPES): own = own | local(o)
    for sub in ast.iter_child_nodes(o): yield from read(sub, own)

def in_pairs(o):
    "`a, b = 1, 2` as statements of one name each, the values first; nothing if `o` isn't such a one"
    if not isinstance(o, ast.Assign) or len(o.targets) > 1: return []
    to, of = (getattr(k, 'elts', []) for k in (o.targets[0], o.value))
    if len(to) != len(of): return []
    kept = [f'<{i}>' for i in range(len(to))]
    return [*(ast.Assign([ast.Name(k, ast.Store())], v) for k, v in zip(kept, of)),
            *(ast.Assign([t], ast.Name(k, ast.Load())) for t, k in zip(to, kept))]

class Flow:
    "Follows what `enters` finds through the cells of one notebook, in order; does it change what it is given?"
    def __init__(self, trees, enters, changes=False):
        self.enters, self.changes, self.made, self.tainted, self.asserted = enters, changes, {}, set(), []
        self.defs = {}   # name -> functions; '.name' -> methods
        for t in trees:
            for c in (c for c in ast.walk(t) if isinstance(c, ast.ClassDef)):
                for f in (f for f in c.body if isinstance(f, DEFS[:2])):
                    f.method = c.name if f.name == '__init__' else '' if f.name[:2] == '__' else f'.{f.name}'
            for f in (f for f in ast.walk(t) if isinstance(f, DEFS[:2])):
                self.defs.setdefault(getattr(f, 'method', f.name), []).append(f)
        self.inside = {k: [n for f in fs for o in f.body for n in executed(o)] for k, fs in self.defs.items()}
        self.doing = set()   # those of them that do it
        while new := {k for k, b in self.inside.items() if k not in self.doing and self.enters_in(b)}:
            self.doing |= new

    def uses(self, nodes):
        "The functions and methods of the notebook that `nodes` name"
        names = {n.id if isinstance(n, ast.Name) else f'.{n.attr}' for n in nodes
                 if isinstance(n, (ast.Name, ast.Attribute))}
        return names & self.defs.keys()

    def enters_in(self, nodes): return any(map(self.enters, nodes)) or bool(self.uses(nodes) & self.doing)

    def reads(self, o, nodes):
        "Names that `o` reads, itself or in functions of the notebook that it uses"
        names, todo, done = set(read(o)), self.uses(nodes), set()
        while todo:
            k = todo.pop()
            done.add(k)
            names |= {n for f in self.defs[k] for n in read(f)}
            todo |= self.uses(self.inside[k]) - done
        return names

    def changed(self, names):
        "What a training changes: `names`, and what they were made of"
        out, todo = set(), [n for n in names if n in self.made]
        while todo:
            n = todo.pop()
            if n in out or DATA.match(n): continue
            out.add(n)
            todo += [m for m in self.made[n] if m in self.made]
        return out

    def cell(self, tree):
        "-> does the cell depend on it?"
        return any([self.statement(o) for o in tree.body])   # a list: every statement is to be followed

    def statement(self, o):
        if isinstance(o, DEFS):
            self.tainted.discard(o.name)
            return False
        inner = [s for k in ('body', 'orelse', 'finalbody') for s in getattr(o, k, [])]
        inner += [s for h in getattr(o, 'handlers', []) for s in h.body]
        heads = [n for n in ast.iter_child_nodes(o) if n not in inner] if inner else [o]
        hit = [self.simple(n) for n in heads if not isinstance(n, ast.ExceptHandler)]
        if isinstance(o, ast.For) and self.simple(o.iter): self.tainted |= set(stored(o.target))
        return any([*hit, *[self.statement(s) for _ in range(2) for s in inner]])   # twice: a loop feeds itself

    def simple(self, o):
        if pairs := in_pairs(o): return any([self.simple(p) for p in pairs])
        nodes = list(executed(o))
        enters, bound = self.enters_in(nodes), set(stored(o))
        hit = enters or not self.tainted.isdisjoint(self.reads(o, nodes))
        into = [n for n in nodes if isinstance(n, (ast.Subscript, ast.Attribute)) and isinstance(n.ctx, ast.Store)]
        parts = {n.id for t in into for n in ast.walk(t) if isinstance(n, ast.Name)}
        if hit and isinstance(o, ast.Assert): self.asserted.append(o)
        if enters and self.changes: self.tainted |= self.changed(set(read(o)))
        if hit: self.tainted |= {*bound, *parts, *self.receivers(nodes)}
        else: self.tainted -= bound
        of = set(read(o))
        for n in bound: self.made.pop(n, None)
        if not isinstance(o, (ast.Import, ast.ImportFrom)) and (of or any(isinstance(n, ast.Call) for n in nodes)):
            self.made.update(dict.fromkeys(bound, of))   # a literal can't be changed by a training
        return hit

    def receivers(self, nodes):
        "x of x.append(…) and the like"
        for n in nodes:
            if isinstance(n, ast.Call) and last_name(n.func) in ('append', 'extend', 'update', 'add', 'insert'):
                of = getattr(n.func, 'value', None)
                while isinstance(of, (ast.Subscript, ast.Attribute)): of = of.value
                if isinstance(of, ast.Name): yield of.id

def kinds(sources):
    "For the sources of a notebook's code cells, in order: 'trained', 'measured' or 'fixed'"
    trees = [parse(s) for s in sources]
    training, clock = Flow(trees, trains, changes=True), Flow(trees, measures)
    return ['trained' if t else 'measured' if m else 'fixed'
            for t, m in [(training.cell(t), clock.cell(t)) for t in trees]]
