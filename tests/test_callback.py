"minifast.callback: delegation, names, order, answers, copies, and what is said about every mistake"
import copy
import pickle
import warnings
from functools import partial
from types import MethodType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from helpers import bunch, exact, make_callback as make, small
from minifast.callback import (EVENTS, Callback, CancelBatchException, CancelEpochException,
                               CancelTrainException, add_note, callable_name, describe, listens)
from minifast.core import ListContainer, set_seed
from minifast.learner import Learner
from minifast.loop import CallbackList, check_events
from minifast.runner import Runner, TrainingLoop

CANCELS = CancelBatchException, CancelEpochException, CancelTrainException
MAY_SKIP = 'begin_epoch', 'begin_validate'
quick = settings(max_examples=60, deadline=None)


class Keeps(Callback):   # at module level, so that it pickles
    def __init__(self, vals=()): self.vals = list(vals)
    def after_loss(self): self.vals.append(1)


class KeepsCallback(Callback): pass


# ---------------------------------------------------------------- the events and the three ways out

def test_events_in_their_order():
    assert ' '.join(EVENTS) == (
        'begin_fit begin_epoch begin_batch after_pred after_loss after_backward after_step '
        'after_cancel_batch after_batch begin_validate after_cancel_epoch after_epoch '
        'after_cancel_train after_fit')


def test_no_cancel_is_another():
    assert all(issubclass(a, Exception) for a in CANCELS)
    assert not any(issubclass(a, b) for a in CANCELS for b in CANCELS if a is not b)


# ---------------------------------------------------------------- one callback: its name, and its run

@pytest.mark.parametrize('cls, name', [
    ('AvgStatsCallback', 'avg_stats'), ('Recorder', 'recorder'), ('LR_Find', 'lr_find'),
    ('ParamScheduler', 'param_scheduler'), ('BatchTransformXCallback', 'batch_transform_x'),
    ('CudaCallback', 'cuda'), ('Callback', 'callback'), ('CallbackOfMine', 'callback_of_mine')])
def test_name(cls, name): assert make(cls).name == name


@pytest.mark.parametrize('k', 'model anything run _private __len__ __deepcopy__ after_loss'.split())
def test_unattached_has_nothing(k): assert not hasattr(make(), k) and getattr(make(), k, 3) == 3


def test_unattached_says_what_to_do():
    with pytest.raises(AttributeError) as e: make('Mine').xb
    assert str(e.value) == "Mine isn't attached to a Runner yet, so it has no 'xb': pass it in Runner(cbs=…)"


def test_reads_the_run_as_it_is_now():
    cb,run = make('Mine'),SimpleNamespace(xb=1)
    cb.set_runner(run)
    assert cb.xb == 1
    run.xb = 2
    assert cb.xb == 2 and cb.run is run and 'xb' not in vars(cb)
    with pytest.raises(AttributeError, match="^Mine has no 'rate', nor its run: .*'rate'"): cb.rate
    assert not hasattr(cb, '__len__')


def shadow(cb, k, v):
    "The warnings of `cb.k = v`"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        setattr(cb, k, v)
    return caught


def test_hiding_the_runs_attribute_warns_once():
    cb = make('Mine')
    run = Runner([cb, Keeps()])
    run.xb = 'the batch'
    with pytest.warns(UserWarning) as caught: cb.xb = 'mine'
    assert str(caught[0].message) == (
        "Mine sets `self.xb`, which hides the run's `xb` and leaves it as it is: write `self.run.xb = …`")
    assert caught[0].filename == __file__ and len(caught) == 1
    assert (run.xb, cb.xb) == ('the batch', 'mine')
    assert not shadow(cb, 'xb', 'again')
    for k in ('logger', 'epoch', 'pos', 'fit'): assert len(shadow(cb, k, 1)) == 1


def test_what_hides_nothing_is_silent():
    cb = make('Mine', loss=None)                       # an attribute of its class is its own
    assert not shadow(cb, 'xb', 1)                     # not attached
    run = Runner([cb, Keeps()])
    for k in ('threshold', 'keeps', 'loss', 'xb', 'run', 'model'): assert not shadow(cb, k, run)


# ---------------------------------------------------------------- copies

@pytest.mark.parametrize('attach', [False, True])
@pytest.mark.parametrize('dup', [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_are_unattached_and_independent(dup, attach):
    cb = Keeps([1, 2])
    if attach: run = CallbackList(cb)
    new = dup(cb)
    assert type(new) is Keeps and vars(new) == {'vals': [1, 2]} and not hasattr(new, 'epoch')
    assert (new.vals is cb.vals) == (dup is copy.copy)
    if attach: assert cb.run is run
    other = CallbackList(new)
    other('after_loss')
    assert new.run is other and new.vals == [1, 2, 1]


# ---------------------------------------------------------------- methods that nothing would call

@pytest.mark.parametrize('method, near', [
    ('after_lossss', 'after_loss'), ('before_batch', 'begin_batch'), ('before_fit', 'begin_fit'),
    ('begin_fitt', 'begin_fit'), ('begin_valid', 'begin_validate'), ('after_cancel_fit', 'after_cancel_'),
    ('after_validate', None), ('on_epoch_end', None), ('on_train_begin', None)])
@pytest.mark.parametrize('attach', [check_events, CallbackList, Runner, lambda cb: Runner().add_cb(cb)])
def test_unknown_events(attach, method, near):
    with pytest.raises(ValueError) as e: attach(make('Mine', **{method: print}))
    said = str(e.value)
    assert said.startswith(f'Mine.{method} would never be called, since there is no such event: ')
    assert all(o in said for o in EVENTS) and (near is None or f'did you mean {near}' in said)


def test_other_methods_are_nobodys_business():
    methods = dict.fromkeys(['after', 'begins_fit', 'one_batch', '_after_lossss', 'fit', 'beforehand'], print)
    check_events(make(**methods, **dict.fromkeys(EVENTS, print)))
    check_events(make(after_meal=print), (*EVENTS, 'after_meal'))


def test_listens_asks_the_callback_not_its_run():
    class HasAll:
        def __getattr__(self, k): return print
    cb = make(after_loss=print)
    cb.after_pred = print
    cb.set_runner(HasAll())
    assert callable(cb.after_step) and [e for e in EVENTS if listens(cb, e)] == ['after_pred', 'after_loss']
    assert not hasattr(cb, '__deepcopy__') and type(copy.deepcopy(cb)) is type(cb)   # nor are its __methods__ the run's


# ---------------------------------------------------------------- describe, add_note

@pytest.mark.parametrize('b, text', [
    (torch.zeros(64, 784), '(64,784) float32'), (torch.tensor(1), '() int64'),
    (torch.zeros(2, dtype=torch.bool, device='meta'), '(2) bool'), (None, 'NoneType'), ('x', 'str'),
    ([torch.zeros(1, 2), (torch.tensor(True), 3)], '[(1,2) float32, [() bool, int]]'), ([], '[]'),
    ({'x': torch.zeros(2, dtype=torch.float16), 'n': [None]}, '{x: (2) float16, n: [NoneType]}')])
def test_describe(b, text): assert describe(b) == text


def test_notes():
    e = ValueError('what')
    add_note(e, 'where')
    add_note(e, 'when')
    old = SimpleNamespace(args=('what',))              # an exception before Python 3.11 has no add_note
    add_note(old, 'where')
    add_note(old, 'when')
    assert e.__notes__ == old.__notes__ == ['where', 'when'] and str(e) == 'what' and old.args == ('what',)


# ---------------------------------------------------------------- how a callable is called

def top(pred, yb, k=1): return pred

class Meter:
    def read(self): 1/0
    @classmethod
    def make(cls): return cls()
    @staticmethod
    def unit(): return 1
    def __call__(self): 1/0

class Says(Meter):
    def __repr__(self): return 'Says(3)'

NAMES = [  # what, its name, its short name
    (top, 'top', 'top'), (len, 'len', 'len'), (torch.relu, 'relu', 'relu'), (lambda: 1, '<lambda>', '<lambda>'),
    (Meter, 'Meter', 'Meter'), (Meter(), 'Meter', 'Meter'), (Says(), 'Says(3)', 'Says'),
    (Meter().read, 'Meter.read', 'read'), (Says().read, 'Says.read', 'read'), (Says.make, 'Says.make', 'make'),
    (Meter().unit, 'unit', 'unit'), (partial(top, k=3), 'partial(top)', 'top'),
    (partial(partial(top, k=3), 1), 'partial(top)', 'top'), (partial(Meter().read), 'partial(Meter.read)', 'read'),
    (partial(Meter), 'partial(Meter)', 'Meter'), (partial(Says()), 'partial(Says(3))', 'Says'),
    (MethodType(partial(top), Says()), 'Says.partial(top)', 'top'),
    (torch.nn.CrossEntropyLoss(), 'CrossEntropyLoss()', 'CrossEntropyLoss')]

@pytest.mark.parametrize('f, name, short', NAMES)
def test_callable_name(f, name, short):
    assert (callable_name(f), callable_name(f, short=True)) == (name, short) and ' at 0x' not in name


def test_the_name_of_a_callback_and_its_methods():
    cb = Keeps()
    CallbackList(cb)                                    # attached, it finds much on its run, but no name
    assert [callable_name(o) for o in (cb, cb.after_loss)] == ['Keeps()', 'Keeps.after_loss']
    assert callable_name(cb, short=True) == 'Keeps'


# ---------------------------------------------------------------- several callbacks and their names

def test_second_of_a_class_gets_a_number():
    first,second,third,other = Keeps([1]),Keeps([2]),Keeps([3]),make('Other')
    run = Runner([first, other, second], cb_funcs=lambda: third)
    assert (run.keeps, run.keeps_2, run.keeps_3, run.other) == (first, second, third, other)
    assert run.cbs[1:] == [first, other, second, third] and all(cb.run is run for cb in run.cbs)


@pytest.mark.parametrize('cls', [CallbackList, TrainingLoop, Runner])
def test_find_asks_by_class(cls):
    class Mine(Keeps): name = 'something_else'
    class Other(Callback): pass
    first,second = Mine(),Keeps()
    run = cls([make(), first], cb_funcs=lambda: second)
    assert run.find(Keeps) is run.find(Mine) is first is run.something_else and run.keeps is second
    assert run.find(Other) is None and cls().find(Keeps) is None
    late = Other()
    run.add_cb(late)
    assert run.find(Other) is first.find(Other) is late            # and a callback asks its run
    assert run.find(Callback) is run.cbs[0]


def test_two_classes_of_one_name():
    for cbs in ([Keeps(), KeepsCallback()], [make('Mine'), make('Mine')]):   # or a cell that ran twice
        with pytest.raises(ValueError, match="^two classes of callbacks are named '(keeps|mine)': rename"):
            Runner(cbs)


def test_the_same_instance_twice():
    cb = Keeps()
    for f in (lambda: Runner([cb, cb]), lambda: Runner(cb, lambda: cb), lambda: Runner(cb).add_cb(cb)):
        with pytest.raises(ValueError, match=r'^Keeps\(\) is here already: make another one$'): f()


OWN = ('cbs events reserved may_skip add_cb find where learn fitting in_train completed epoch epochs trained iter '
       'n_iter iters xb yb pred loss dl n_epochs pos one_batch one_epoch all_batches fit logger model opt '
       'loss_func data')

@pytest.mark.parametrize('name', OWN.split())
def test_names_that_hide_the_runners_own(name):
    cb,run = make(''.join(o.capitalize() for o in name.split('_')) + 'Callback'),Runner()
    assert cb.name == name
    with pytest.raises(ValueError, match=f"Callback would hide the Runner's own '{name}': rename the class"):
        run.add_cb(cb)
    assert len(run.cbs) == 1 and cb not in vars(run).values()


def test_a_number_hides_nobody():
    cls,other = type('Say', (Callback,), {}),make('Say_2')
    a,b,c = cls(),cls(),cls()
    run = Runner([other, a, b, c])
    assert (run.say_2, run.say, run.say_3, run.say_4) == (other, a, b, c)


@pytest.mark.parametrize('cbs', [Keeps, 'keeps', 5, [Keeps(), print], [None], [[Keeps()]], {'a': 1}])
def test_not_a_callback(cbs):
    with pytest.raises(TypeError, match='^cbs takes callbacks, got .*: make an instance, or pass a class in'):
        Runner(cbs)


@pytest.mark.parametrize('funcs', [Keeps(), [Keeps, Keeps()], 'Keeps', [None]])
def test_not_a_function_that_makes_one(funcs):
    with pytest.raises(TypeError, match='^cb_funcs takes functions that make callbacks, got .*: use cbs$'):
        Runner(cb_funcs=funcs)


def test_a_function_that_makes_something_else():
    with pytest.raises(TypeError, match='^cbs takes callbacks, got 3'): Runner(cb_funcs=lambda: 3)


@pytest.mark.parametrize('cls', [CallbackList, TrainingLoop, Runner])
def test_what_cbs_and_cb_funcs_may_be(cls):
    n = len(cls().cbs)
    for cbs in (None, Keeps(), [Keeps()], (Keeps(),), ListContainer([Keeps()])):
        for funcs in (None, make, [make, partial(make, 'Other')], (partial(make, 'Other'),)):
            k = (cbs is not None) + (0 if funcs is None else 2 if isinstance(funcs, list) else 1)
            run = cls(copy.deepcopy(cbs), funcs)
            assert len(run.cbs) == n+k and hasattr(run, 'keeps') == (cbs is not None)
    assert cls(cb_funcs=partial(Keeps, [7])).keeps.vals == [7]


def test_the_callers_lists_stay_as_they_are():
    cbs,funcs = [Keeps()],[make]
    run = Runner(cbs, funcs)
    run.add_cb(make('Late'))
    assert len(cbs) == len(funcs) == 1 and len(run.cbs) == 4 and run.cbs is not cbs


def test_generators():
    run = Runner((o for o in [Keeps([7])]), (o for o in [Keeps, make]))
    assert (run.keeps.vals, run.keeps_2.vals, run.some.name) == ([7], [], 'some')


# ---------------------------------------------------------------- order

@quick
@given(st.lists(st.sampled_from([-9, -1, 0, .5, 1, 50]), max_size=7), st.integers(0, 7),
       st.sampled_from(EVENTS))
def test_order_and_then_as_given(orders, late, event):
    "Wherever they come from: `cbs`, `cb_funcs` or added later"
    said = []
    cbs = [make(f'Cb{i}', o, **{event: lambda self, i=i: said.append(i)}) for i,o in enumerate(orders)]
    run = CallbackList(cbs[:late//2], [lambda cb=cb: cb for cb in cbs[late//2:late]])
    for cb in cbs[late:]: run.add_cb(cb)
    run(event)
    assert said == sorted(range(len(orders)), key=lambda i: (orders[i], i)) and run.cbs == cbs


def test_an_order_of_the_instance():
    said = []
    def says(self): said.append(self._order)
    cbs = [make(f'Cb{i}', after_loss=says) for i in range(3)]
    cbs[0]._order = 9
    CallbackList(cbs)('after_loss')
    assert said == [0, 0, 9]


# ---------------------------------------------------------------- events and answers

@pytest.mark.parametrize('cls', [CallbackList, Runner])
@pytest.mark.parametrize('event', ['nonsense', 'after_lossss', 'fit', '', None])
def test_there_is_no_such_event(cls, event):
    with pytest.raises(ValueError, match=f'there is no event {event!r}, only begin_fit, .*, after_fit$'):
        cls()(event)


@pytest.mark.parametrize('answer', [True, 1, 'yes', [0], torch.tensor(True)])
@pytest.mark.parametrize('event', EVENTS)
def test_true_answers(event, answer):
    run = CallbackList(make('Says', **{event: lambda self: answer}))
    if event in MAY_SKIP: assert run(event) is True
    else:
        with pytest.raises(ValueError) as e: run(event)
        said = f'Says.<lambda> returned {answer!r}, but only begin_epoch and begin_validate may ask'
        assert str(e.value).startswith(said)
    assert not any(run(o) for o in EVENTS if o != event)


@pytest.mark.parametrize('event', EVENTS)
def test_false_answers(event):
    for answer in (None, False, 0, '', [], torch.tensor(0.)):
        assert CallbackList(make(**{event: lambda self: answer}))(event) is False


@pytest.mark.parametrize('event', ['after_pred', 'begin_epoch'])
def test_a_tensor_as_answer(event):
    with pytest.raises(ValueError, match='Says.<lambda> returned'):
        CallbackList(make('Says', **{event: lambda self: torch.zeros(3, 2)}))(event)


@quick
@given(st.lists(st.sampled_from([None, False, True, 1, 0]), max_size=6), st.sampled_from(MAY_SKIP))
def test_one_of_several_is_enough_and_all_are_asked(answers, event):
    asked = []
    def says(i): return lambda self: asked.append(i) or answers[i]
    run = CallbackList([make(f'Cb{i}', **{event: says(i)}) for i in range(len(answers))])
    assert run(event) is any(answers) and asked == list(range(len(answers)))


# ---------------------------------------------------------------- errors

class Breaks(Callback):
    def after_loss(self): raise KeyError('lr')


def test_an_error_names_method_and_class():
    with pytest.raises(KeyError) as e: CallbackList(Breaks())('after_loss')
    assert e.value.args == ('lr',) and e.value.__notes__ == ['in Breaks.after_loss']


@pytest.mark.parametrize('exc', [*CANCELS, KeyboardInterrupt, SystemExit])
def test_a_cancel_passes_as_it_is(exc):
    raised,after = exc('why'),[]
    def act(self): raise raised
    run = CallbackList([make(after_loss=act), make('After', after_loss=lambda self: after.append(1))])
    with pytest.raises(exc) as e: run('after_loss')
    assert e.value is raised and not hasattr(raised, '__notes__') and not after


class Fails:
    def __call__(self): 1/0

@pytest.mark.parametrize('f, name', [(Fails(), 'Fails'), (partial(Fails()), 'partial(Fails)')])
def test_an_event_may_be_any_callable(f, name):
    cb = make('Mine')
    cb.after_loss = f
    with pytest.raises(ZeroDivisionError) as e: CallbackList(cb)('after_loss')
    assert e.value.__notes__ == [f'in {name}']


def test_where_is_empty_without_a_loop(): assert CallbackList().where() == ''


def test_repr(): assert repr(Keeps()) == 'Keeps()'


# ---------------------------------------------------------------- the small loop of lesson 05a

class Doubles(Callback):
    "Doubles the loss, and halves the rate after the second batch"
    def begin_fit(self): self.called,self.n = [],0
    def begin_epoch(self): self.called.append('begin_epoch')
    def after_loss(self):
        self.called.append('after_loss')
        self.run.loss = self.loss*2
    def after_batch(self):
        self.called.append('after_batch')
        self.n += 1
        if self.n == 2: self.opt.param_groups[0]['lr'] /= 2
    def after_epoch(self): self.called.append('after_epoch')

def test_the_small_loop_trains_as_the_runner():
    "With a callback that acts on the loss and on the rate, to the last bit"
    def trained(fit, cb):
        set_seed(2)
        model = nn.Linear(6, 3)
        learn = Learner(model, SGD(model.parameters(), lr=.5), F.cross_entropy, bunch())
        learn.data.valid_dl = None
        fit([cb])(2, learn)
        return model.state_dict()
    ours,its = Doubles(),Doubles()
    got = trained(lambda cbs: small('05a_callbacks', 'SmallLoop')(cbs).fit, ours)
    exact(got, trained(lambda cbs: Runner(cbs).fit, its))
    assert ours.called == its.called and set(ours.called) == {'begin_epoch', 'after_loss', 'after_batch', 'after_epoch'}
