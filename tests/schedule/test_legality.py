"""One schedule for each rule, broken in exactly that way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from stanza_sim.base.errors import ScheduleError
from stanza_sim.schedule import Compute, Phase, Schedule, check, parse
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import build, toy

MODEL = toy()

# Workers 0 to 2; 3 serves c2, which goes whole, and with 2 owns c1 in slices; FC by the workers' own collectives.
SERVERS = """\
schedule s model=toy world=4 batch=4
group worker 0-2
group server 3
group both 2-3
bundle wc2 numel=30 owners=server tensors=c2.t0,c2.t1
bundle wc1 numel=12 owners=both layout=cut tensors=c1.t0,c1.t1
bundle wf1 numel=49 owners=worker layout=cut tensors=f1.t0,f1.t1
bundle wf2 numel=32 owners=worker tensors=f2.t0,f2.t1
fc1: forward c1 @worker after_previous=pull1
fpool: forward pool @worker after=fc1
fc2: forward c2 @worker after=fpool after_previous=pull2
ff1: forward f1 @worker after=fc2 after_previous=ag
ff2: forward f2 @worker after=ff1 after_previous=uf2
loss: loss f2 @worker after=ff2
bf2: backward f2 @worker after=loss
bf1: backward f1 @worker after=bf2
bc2: backward c2 @worker after=bf1
bpool: backward pool @worker after=bc2
bc1: backward c1 @worker after=bpool
ar: all_reduce grad(wf2) @worker nbytes=128 algorithm=ring after=bf2
rs: reduce_scatter grad(wf1) @worker nbytes=196 algorithm=ring after=bf1
push2: transfer grad(wc2) worker->server fan-in nbytes=120 channel=push after=bc2
push1: transfer grad(wc1) worker->both all-pairs nbytes=48 channel=push after=bc1
rc2: reduce wc2 @server after=push2
uc2: update wc2 @server after=rc2
pull2: transfer param(wc2) server->worker fan-out nbytes=120 channel=pull after=uc2
rc1: reduce wc1 @both lane=side after=push1
uc1: update wc1 @both lane=side after=rc1
pull1: transfer param(wc1) both->worker all-pairs nbytes=48 channel=pull after=uc1
uf2: update wf2 @worker after=ar
uf1: update wf1 @worker after=rs
ag: all_gather param(wf1) @worker nbytes=196 algorithm=ring after=uf1
"""

# CONV workers 0 and 1, FC worker 2; two micro-batches; only f1 is trained.
SEPARATED = """\
schedule s model=toy world=3 batch=4 microbatches=2
group conv 0-1
group fc 2
group first 0
bundle wf1 numel=49 owners=fc tensors=f1.t0,f1.t1
c.0: forward c1 @conv
p.0: forward pool @conv after=c.0
d.0: forward c2 @conv after=p.0
c.1: forward c1 @conv microbatch=1
p.1: forward pool @conv microbatch=1 after=c.1
d.1: forward c2 @conv microbatch=1 after=p.1
act.0: transfer act(c2)+labels conv->fc fan-in nbytes=64 channel=act after=d.0
act.1: transfer act(c2)+labels conv->fc explicit nbytes=64 channel=act microbatch=1 pairs=0>2,1>2 after=d.1
e.0: forward f1 @fc after=act.0 after_previous=u
f.0: forward f2 @fc after=e.0
l.0: loss f2 @fc after=f.0
g.0: backward f2 @fc after=l.0
h.0: backward_weight f1 @fc after=g.0
e.1: forward f1 @fc microbatch=1 after=act.1,h.0
f.1: forward f2 @fc microbatch=1 after=e.1
l.1: loss f2 @fc microbatch=1 after=f.1
g.1: backward f2 @fc microbatch=1 after=l.1
h.1: backward_weight f1 @fc microbatch=1 after=g.1
u: update wf1 @fc after=h.1
bc: broadcast param(wf1) @fc nbytes=196 algorithm=ring root=2 after=u
"""

# CONV workers 0 and 1; FC worker 2 computes the samples of each by themselves, as micro-batches 1 and 2.
ARRIVAL = """\
schedule s model=toy world=3 batch=4
group conv 0-1
group fc 2
group first 0
group second 1
bundle wf1 numel=49 owners=fc tensors=f1.t0,f1.t1
c: forward c1 @conv
p: forward pool @conv after=c
d: forward c2 @conv after=p
act.1: transfer act(c2)+labels first->fc one-to-one nbytes=80 channel=act arrives_as=1 wire=bf16 after=d
act.2: transfer act(c2)+labels second->fc one-to-one nbytes=128 channel=act arrives_as=2 after=d
e.1: forward f1 @fc microbatch=1 after=act.1 after_previous=u
f.1: forward f2 @fc microbatch=1 after=e.1
l.1: loss f2 @fc microbatch=1 after=f.1
g.1: backward f2 @fc microbatch=1 after=l.1
h.1: backward_input f1 @fc microbatch=1 after=g.1
back.1: transfer actgrad(c2) fc->first one-to-one nbytes=96 channel=back microbatch=1 arrives_as=0 after=h.1
e.2: forward f1 @fc microbatch=2 after=act.2,h.1
f.2: forward f2 @fc microbatch=2 after=e.2
l.2: loss f2 @fc microbatch=2 after=f.2
g.2: backward f2 @fc microbatch=2 after=l.2
h.2: backward_input f1 @fc microbatch=2 after=g.2
back.2: transfer actgrad(c2) fc->second one-to-one nbytes=96 channel=back microbatch=2 arrives_as=0 after=h.2
w.1: backward_weight f1 @fc microbatch=1 after=h.2
w.2: backward_weight f1 @fc microbatch=2 after=w.1
b: backward c2 @conv after=back.1,back.2
u: update wf1 @fc after=w.2
"""

BASES = {"servers": SERVERS, "separated": SEPARATED, "arrival": ARRIVAL}

# name of the rule -> (base, what is replaced, by what, the message, the op that is shown)
BROKEN: dict[str, tuple[str, str, str, str, str]] = {
    "world": ("servers", "world=4", "world=0", "world=0 must be at least 1", ""),
    "batch": ("servers", "batch=4", "batch=0", "batch=0 must be at least 1", ""),
    "microbatches": ("servers", "batch=4", "batch=4 microbatches=-1", "microbatches=-1 must be at least 1", ""),
    "itemsize": ("servers", "batch=4", "batch=4 itemsize=0", "itemsize=0 must be at least 1", ""),
    "even micro-batches": ("separated", "batch=4", "batch=5", "a batch of 5 cannot be cut in 2 equal", ""),
    "model": ("servers", "model=toy", "model=other", "was made for model other, not toy", ""),
    "op name": ("servers", "ff1:", "f%1:", "'f%1' is not a name for a op", ""),
    "group name": ("servers", "group both", "group b+h", "'b+h' is not a name for a group", ""),
    "bundle name": ("servers", "bundle wc2", "bundle w(c", "'w(c' is not a name for a bundle", ""),
    "schedule name": ("servers", "schedule s", "schedule s&t", "'s&t' is not a name for a schedule", ""),
    "ops of one name": ("servers", "fc2:", "fc1:", "two ops are called fc1", ""),
    "groups of one name": ("servers", "group server", "group worker", "two groups are called worker", ""),
    "bundles of one name": ("servers", "bundle wc1", "bundle wc2", "two bundles are called wc2", ""),
    "empty group": ("servers", "group both 2-3", "group both", "group both is empty", ""),
    "rank of no world": ("servers", "group both 2-3", "group both 2-4", "has rank 4, the world is 4 ranks", ""),
    "owners": ("servers", "owners=both", "owners=all", "no group 'all'", ""),
    "tensor of the model": ("servers", "c2.t0,c2.t1", "c2.t0,c2.t9", "model toy has no tensor c2.t9", ""),
    "tensor in two bundles": ("servers", "numel=30 owners=server tensors=c2.t0,c2.t1",
                              "numel=28 owners=server tensors=c2.t0,c1.t1", "tensor c1.t1 is in two bundles", ""),
    "numel": ("servers", "numel=30", "numel=31", "bundle wc2 has numel=31, its tensors have 30", ""),
    "name ends in a side": ("servers", "uf1:", "uf1.sent:", "may not end in .recv or .sent", "uf1.sent: update"),
    "group of a computation": ("servers", "ff1: forward f1 @worker", "ff1: forward f1 @x", "no group 'x'", "ff1:"),
    "group of a transfer": ("servers", "server->worker", "x->worker", "no group 'x'", "pull2:"),
    "group of a collective": ("servers", "(wf2) @worker", "(wf2) @x", "no group 'x'", "ar:"),
    "lane": ("servers", "uc1: update wc1 @both lane=side", "uc1: update wc1 @both lane=", "name for a lane", "uc1:"),
    "channel": ("servers", "channel=pull after=uc2", "channel=é after=uc2", "not a name for a channel", "pull2:"),
    "micro-batch": ("servers", "@worker after=ff2", "@worker microbatch=1 after=ff2", "are 1 micro-batches", "loss:"),
    "after: exists": ("servers", "after=ff2", "after=nobody", "names nobody, and there is no such op", "loss:"),
    "after: earlier": ("servers", "after=ff2", "after=ff2,bf2", "names bf2, which is not an earlier op", "loss:"),
    "after: itself": ("servers", "after=ff2", "after=ff2,loss", "names loss, which is not an earlier op", "loss:"),
    "after_previous: exists": ("servers", "s=pull1", "s=nil", "after_previous names nil, and there is no", "fc1:"),
    "side of a computation": ("servers", "after=ff2", "after=ff2.recv", "only a transfer has .recv and .sent", "loss:"),
    "gates nobody": ("servers", "rc2: reduce wc2 @server after=push2", "rc2: reduce wc2 @server after=push2,fc1",
                     "after names fc1, but no rank that it would gate takes part in it", "rc2:"),
    "side gates nobody": ("servers", "after=push2", "after=push2.sent", "names push2.sent, but no rank", "rc2:"),
    "previous gates nobody": ("servers", "after=push2", "after=push2 after_previous=fc1", "but no rank", "rc2:"),
    "bundle of a computation": ("servers", "reduce wc2", "reduce wx", "there is no bundle 'wx'", "rc2:"),
    "update at owners": ("servers", "update wf2 @worker", "update wf2 @both", "only an owner of bundle wf2", "uf2:"),
    "block": ("servers", "forward pool", "forward lake", "model toy has no block lake", "fpool:"),
    "forward twice": ("servers", "fpool: forward pool @worker after=fc1", "fpool: forward pool @worker after=fc1\n"
                      "again: forward c1 @both after=fc1", "rank 2 has run this forward pass already", "again:"),
    "loss of the last block": ("servers", "loss f2", "loss f1", "from the last block's output", "loss:"),
    "one-to-one sizes": ("servers", "worker->server fan-in", "worker->server one-to-one", "not 3 and 1", "push2:"),
    "fan-in": ("servers", "worker->both all-pairs", "worker->both fan-in", "one destination, not 2", "push1:"),
    "fan-out": ("servers", "both->worker all-pairs", "both->worker fan-out", "one source, not 2", "pull1:"),
    "pair outside": ("separated", "pairs=0>2,1>2", "pairs=0>2,1>0", "the pair 1>0 is not from conv to fc", "act.1:"),
    "no pairs": ("separated", "pairs=0>2,1>2 ", "", "explicit pairs must be given, each once", "act.1:"),
    "pair twice": ("separated", "pairs=0>2,1>2", "pairs=0>2,0>2", "explicit pairs must be given, each", "act.1:"),
    "pairs of a pattern": ("separated", "channel=act after=d.0", "channel=act pairs=0>2 after=d.0",
                           "pairs are given by the pattern fan-in", "act.0:"),
    "bundle of a transfer": ("servers", "transfer grad(wc2)", "transfer grad(wx)", "no bundle 'wx'", "push2:"),
    "block of a transfer": ("separated", "act(c2)+labels conv->fc fan-in", "act(c9)+labels conv->fc fan-in",
                            "has no block c9", "act.0:"),
    "named labels": ("separated", "act(c2)+labels conv->fc fan-in", "act(c2)+labels(x) conv->fc fan-in",
                     "labels have no name", "act.0:"),
    "bytes of parameters": ("servers", "fan-out nbytes=120", "fan-out nbytes=121", "the values have 120", "pull2:"),
    "bytes of activations": ("separated", "fan-in nbytes=64", "fan-in nbytes=128", "the values have 64", "act.0:"),
    "a message of its own": ("servers", "transfer grad(wc2) worker->server fan-in nbytes=120",
                             "transfer grad(wc2)+labels worker->server fan-in nbytes=152",
                             "grad(wc2) travels in a message of its own", "push2:"),
    "gradients go to owners": ("servers", "transfer grad(wc2) worker->server fan-in",
                               "transfer grad(wc2) worker->both all-pairs",
                               "grad(wc2) goes to owners of the bundle (server) only", "push2:"),
    "parameters come from owners": ("servers", "transfer param(wc2) server->worker fan-out",
                                    "transfer param(wc2) both->worker all-pairs",
                                    "param(wc2) comes from owners of the bundle (server) only", "pull2:"),
    "bundle of a collective": ("servers", "all_reduce grad(wf2)", "all_reduce grad(wx)", "no bundle 'wx'", "ar:"),
    "collective of activations": ("servers", "all_reduce grad(wf2)", "all_reduce act(f2)", "block f2 is cut", "ar:"),
    "bytes of a collective": ("servers", "nbytes=128", "nbytes=127", "the value has 128 bytes", "ar:"),
    "all-reduce of parameters": ("servers", "all_reduce grad", "all_reduce param", "all_reduce moves gradients", "ar:"),
    "all-gather of gradients": ("servers", "all_gather param", "all_gather grad", "all_gather moves param", "ag:"),
    "scatter of a whole": ("servers", "ar: all_reduce", "ar: reduce_scatter", "needs a bundle that is cut over", "ar:"),
    "root missing": ("separated", "root=2 ", "", "a broadcast needs a root in its group", "bc:"),
    "root outside": ("separated", "root=2", "root=0", "a broadcast needs a root in its group", "bc:"),
    "root of a cut bundle": ("servers", "ag: all_gather param(wf1) @worker nbytes=196 algorithm=ring",
                             "ag: broadcast param(wf1) @worker nbytes=196 algorithm=ring root=0",
                             "a broadcast's root must own the whole bundle", "ag:"),
    "root of an all-reduce": ("servers", "algorithm=ring after=bf2", "algorithm=ring root=0 after=bf2",
                              "all_reduce has no root", "ar:"),
    "a backend's tree": ("servers", "algorithm=ring after=bf2", "algorithm=tree after=bf2",
                         "a backend's own collectives are rings", "ar:"),
    "hierarchy without hosts": ("servers", "algorithm=ring after=bf2", "algorithm=hierarchical by=steps after=bf2",
                                "a hierarchy needs the number of ranks on a host", "ar:"),
    "hosts of a ring": ("servers", "algorithm=ring after=bf2", "algorithm=ring by=steps local=2 after=bf2",
                        "local=2 is for a hierarchy, not for ring", "ar:"),
    "tiny chunk": ("servers", "algorithm=ring after=bf2", "algorithm=tree by=steps chunk=3 after=bf2",
                   "chunk=3 is less than an element of 4 bytes", "ar:"),
    "forward needs input": ("separated", "act(c2)+labels conv->fc fan-in nbytes=64", "labels conv->fc fan-in nbytes=16",
                            "act(c2) is not there before it is used", "e.0:"),
    "input of its micro-batch": ("separated", "after=act.1,h.0", "after=act.0,h.0", "act(c2) is not there", "e.1:"),
    "loss needs labels": ("separated", "act(c2)+labels conv->fc fan-in nbytes=64", "act(c2) conv->fc fan-in nbytes=48",
                          "labels is not there before it is used", "l.0:"),
    "backward needs the loss": ("separated", "l.0: loss f2 @fc after=f.0\ng.0: backward f2 @fc after=l.0",
                                "g.0: backward f2 @fc after=f.0\nl.0: loss f2 @fc after=f.0",
                                "actgrad(f2) is not there before it is used", "g.0:"),
    "activation before it is sent": ("separated", "labels conv->fc fan-in nbytes=64 channel=act after=d.0",
                                     "labels conv->fc fan-in nbytes=64 channel=act after=p.0",
                                     "act(c2) is not there before it is used", "act.0:"),
    "gradient before it is sent": ("servers", "channel=push after=bc2", "channel=push after=bf1",
                                   "grad(wc2) needs the backward pass of c2", "push2:"),
    "gradient before it is reduced": ("servers", "algorithm=ring after=bf2", "algorithm=ring after=loss",
                                      "grad(wf2) needs the backward pass of f2", "ar:"),
    "reduce before anything arrives": ("servers", "reduce wc1 @both lane=side after=push1",
                                       "reduce wc1 @both lane=side",
                                       "no transfer brings grad(wc1) before it is reduced", "rc1:"),
    "reduce after sending only": ("servers", "lane=side after=push1", "lane=side after=push1.sent",
                                  "no transfer brings grad(wc1) before it is reduced", "rc1:"),
    "update without gradients": ("servers", "uf2: update wf2 @worker after=ar", "uf2: update wf2 @worker lane=x",
                                 "grad(wf2) needs the backward pass of f2", "uf2:"),
    "every micro-batch": ("separated", "after=g.1\nu: update wf1 @fc after=h.1", "after=g.1\nu: update wf1 @fc lane=x "
                          "after=h.0", "grad(wf1) needs the backward pass of f1", "u:"),
    "pull in place": ("servers", "channel=pull after=uc2", "channel=pull",
                      "param(wc2) would be overwritten while a pass may still read it", "pull2:"),
    "pull in place behind the own push": ("servers", "pull1: transfer param(wc1) both->worker all-pairs nbytes=48 "
                                          "channel=pull after=uc1",
                                          "pull1: transfer param(wc1) both->worker all-pairs nbytes=48 channel=pull "
                                          "after=push1.recv", "param(wc1) would be overwritten", "pull1:"),
    "all-gather in place": ("servers", "uf1: update wf1 @worker after=rs\nag: all_gather param(wf1) @worker nbytes=196 "
                            "algorithm=ring after=uf1", "ag: all_gather param(wf1) @worker nbytes=196 algorithm=ring "
                            "after=ff2", "param(wf1) would be overwritten", "ag:"),
    "a number of its own": ("arrival", "arrives_as=1 wire", "arrives_as=0 wire", "of the receiver's own", "act.1:"),
    "one number each": ("arrival", "arrives_as=2", "arrives_as=1", "arrived at rank 2 as micro-batch 1", "act.2:"),
    "counted from 0": ("arrival", "microbatch=2 arrives_as=0", "microbatch=2 arrives_as=-1", "from 0", "back.2:"),
    "number of parameters": ("servers", "fan-out nbytes=120", "fan-out nbytes=120 arrives_as=1",
                             "gradients and parameters of a bundle are of no micro-batch", "pull2:"),
    "a number that nobody has": ("arrival", "e.2: forward f1 @fc microbatch=2", "e.2: forward f1 @fc microbatch=3",
                                 "there are 3 micro-batches, counted from 0", "e.2:"),
    "what has not arrived": ("arrival", "after=act.2,h.1", "after=h.1", "act(c2) is not there before", "e.2:"),
    "labels that have not arrived": ("arrival", "act(c2)+labels second->fc one-to-one nbytes=128",
                                     "act(c2) second->fc one-to-one nbytes=96", "labels is not there", "l.2:"),
    "the gradient of its number": ("arrival", "after=back.1,back.2", "after=back.1",
                                   "actgrad(c2) is not there before it is used (rank 1)", "b:"),
    "every number": ("arrival", "u: update wf1 @fc after=w.2", "u: update wf1 @fc lane=x after=w.1",
                     "grad(wf1) needs the backward pass of f1", "u:"),
    "bytes of what is rounded": ("arrival", "nbytes=80", "nbytes=128", "the values have 80 bytes", "act.1:"),
    "rounded parameters": ("servers", "fan-out nbytes=120", "fan-out nbytes=120 wire=bf16",
                           "only activations and gradients are rounded", "pull2:"),
    "a rounded sum of whole size": ("servers", "nbytes=128 algorithm=ring", "nbytes=128 algorithm=ring wire=bf16",
                                    "nbytes=128, but the value has 64 bytes", "ar:"),
    "a rounded gradient of whole size": ("servers", "fan-in nbytes=120", "fan-in nbytes=120 wire=fp16",
                                         "nbytes=120, but the values have 60 bytes", "push2:"),
}  # fmt: skip


@pytest.mark.parametrize("base", BASES)
def test_the_bases_are_legal(base: str) -> None:
    check(parse(BASES[base]), MODEL)


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule(rule: str) -> None:
    base, old, new, message, op = BROKEN[rule]
    assert BASES[base].count(old) == 1, "the replacement is not unique"
    broken = parse(BASES[base].replace(old, new))
    with pytest.raises(ScheduleError) as e:
        check(broken, MODEL)
    assert message in str(e.value)
    assert "schedule s" in str(e.value)
    if op:  # the op is shown as it is printed
        line = next(x for x in broken.text().splitlines() if x.startswith(op))
        assert f"in: {line}" in str(e.value)


# One worker trains c1 with a server; the weight gradient is there before the input gradient has read the parameters.
READERS = """\
schedule s model=toy world=2 batch=4
group worker 0
group server 1
bundle wf2 numel=32 owners={owners} tensors=f2.t0,f2.t1
a: forward c1 @worker
b: forward pool @worker after=a
c: forward c2 @worker after=b
d: forward f1 @worker after=c
e: forward f2 @worker after=d
l: loss f2 @worker after=e
weight: backward_weight f2 @worker after=l
{rest}"""


def test_parameters_are_written_only_after_every_pass_that_reads_them() -> None:
    inputs = "input: backward_input f2 @worker after=weight lane=x\n"
    exchange = (
        "push: transfer grad(wf2) worker->server one-to-one nbytes=128 after={0}\nred: reduce wf2 @server after=push\n"
        "upd: update wf2 @server after=red\npull: transfer param(wf2) server->worker one-to-one nbytes=128 after=upd\n"
    )
    check(parse(READERS.format(owners="server", rest=inputs + exchange.format("weight,input"))), MODEL)
    for rest in (inputs + exchange.format("weight"), exchange.format("weight") + inputs):
        with pytest.raises(ScheduleError, match="overwritten while input may still read it") as e:
            check(parse(READERS.format(owners="server", rest=rest)), MODEL)
        assert "in: pull:" in str(e.value)
    check(parse(READERS.format(owners="worker", rest=inputs + "upd: update wf2 @worker after=weight,input")), MODEL)
    with pytest.raises(ScheduleError, match="overwritten while input may still read it"):
        check(parse(READERS.format(owners="worker", rest=inputs + "upd: update wf2 @worker after=weight")), MODEL)


def test_a_transfer_carries_something() -> None:
    s = parse(SERVERS)
    ops = tuple(replace(o, values=()) if o.name == "push2" else o for o in s.ops)  # type: ignore[call-arg]
    with pytest.raises(ScheduleError, match="carries at least one value"):
        check(replace(s, ops=ops), MODEL)


def test_names_that_would_not_print() -> None:
    model = replace(MODEL, name="my toy")
    with pytest.raises(ScheduleError, match="'my toy' is not a name for a model"):
        check(replace(parse(SERVERS), model="my toy"), model)


def test_two_groups_may_draw_samples_by_ops_of_their_own() -> None:
    """Each rank that computes the first block draws samples, whichever op says so, and has their labels."""
    text = "schedule s model=toy world=3 batch=4\ngroup a 0\ngroup b 1-2\n"
    for g in ("a", "b"):
        before = ""
        for block in MODEL.blocks:
            text += f"{g}.{block.name}: forward {block.name} @{g} {before}\n"
            before = f"after={g}.{block.name}"
        text += f"{g}.loss: loss f2 @{g} {before}\n"
    schedule = parse(text)
    check(schedule, MODEL)
    assert str(schedule.data_ranks) == "0-2"
    assert schedule.global_batch == 12


# ---- the rules of data flow hold at every rank ----------------------------------------------------------------------

# Ranks 0 and 1 run every pass; f2's parameters are exchanged, between them or by the servers 2 and 3. `k` runs at one
# rank only, so that what is `after=k` is not gated at the other.
PER_RANK = """\
schedule s model=toy world=4 batch=4
group w 0-1
group first 0
group servers 2-3
group last 3
{head}a: forward c1 @w
b: forward pool @w
c: forward c2 @w
d: forward f1 @w
e: forward f2 @w
l: loss f2 @w
weight: backward_weight f2 @w
input: backward_input f2 @w lane=x after=weight
{rest}"""
ON_SERVERS = "bundle wf2 numel=32 owners=servers tensors=f2.t0,f2.t1\n"
ON_WORKERS = "bundle wf2 numel=32 owners=w tensors=f2.t0,f2.t1\n"
IN_SLICES = "bundle wf2 numel=32 owners=w layout=cut tensors=f2.t0,f2.t1\n"
PUSH = "push: transfer grad(wf2) w->servers {} nbytes=128 {}after={}\n"
SERVE = "red: reduce wf2 @servers after={}\nupd: update wf2 @servers after=red\n"
PULL = "pull: transfer param(wf2) servers->w {} nbytes=128 {}after={}\n"
ALL_REDUCE = "ar: all_reduce grad(wf2) @w nbytes=128 algorithm=ring after={}\n"
SLICES = (
    "push: transfer grad(wf2) w->w all-pairs nbytes=128 after={}\nred: reduce wf2 @w after=push\n"
    "upd: update wf2 @w after={}\npull: transfer param(wf2) w->w all-pairs nbytes=128 after=upd\n"
)

# name -> (bundle, ops that are legal, the same with something wrong at one rank only, the message, the op)
AT_ONE_RANK: dict[str, tuple[str, str, str, str, str]] = {
    "gradient before it is pushed": (
        ON_SERVERS,
        PUSH.format("all-pairs", "", "input"),
        "k: backward_weight f1 @first lane=x after=input\n" + PUSH.format("all-pairs", "", "k"),
        "grad(wf2) needs the backward pass of f2 (rank 1)",
        "push:",
    ),
    "gradient before it is reduced": (
        ON_WORKERS,
        ALL_REDUCE.format("weight"),
        "k: backward_weight f1 @first lane=x after=input\n" + ALL_REDUCE.format("k"),
        "grad(wf2) needs the backward pass of f2 (rank 1)",
        "ar:",
    ),
    "reduce where nothing arrives": (
        ON_SERVERS,
        PUSH.format("explicit", "pairs=0>2,0>3,1>2 ", "weight") + SERVE.format("push"),
        PUSH.format("explicit", "pairs=0>2,1>2 ", "weight") + SERVE.format("push"),
        "no transfer brings grad(wf2) before it is reduced (rank 3)",
        "red:",
    ),
    "update while a pass reads": (
        ON_WORKERS,
        ALL_REDUCE.format("weight") + "upd: update wf2 @w lane=z after=ar,input\n",
        ALL_REDUCE.format("weight")
        + "k: backward_weight f1 @first lane=x after=input\nupd: update wf2 @w lane=z after=ar,k\n",
        "overwritten while input may still read it (rank 1)",
        "upd:",
    ),
    "pull from a server that has not reduced": (
        ON_SERVERS,
        PUSH.format("all-pairs", "", "input") + SERVE.format("push") + PULL.format("all-pairs", "", "upd"),
        PUSH.format("all-pairs", "", "input")
        + SERVE.format("push")
        + "k: update wf2 @last after=upd\n"
        + PULL.format("all-pairs", "", "k"),
        "param(wf2) would be overwritten while a pass may still read it",
        "pull:",
    ),
    "pull from the server of another": (
        ON_SERVERS,
        PUSH.format("one-to-one", "", "input")
        + SERVE.format("push")
        + PULL.format("explicit", "pairs=2>0,3>1 ", "upd"),
        PUSH.format("one-to-one", "", "input")
        + SERVE.format("push")
        + PULL.format("explicit", "pairs=2>1,3>0 ", "upd"),
        "param(wf2) would be overwritten while a pass may still read it",
        "pull:",
    ),
    "slices written where another rank still reads": (
        IN_SLICES,
        SLICES.format("input", "red"),
        SLICES.format("weight", "red,input"),
        "overwritten while input may still read it",
        "pull:",
    ),
}


@pytest.mark.parametrize("rule", AT_ONE_RANK)
def test_each_rule_of_data_flow_at_every_rank(rule: str) -> None:
    head, good, bad, message, op = AT_ONE_RANK[rule]
    check(parse(PER_RANK.format(head=head, rest=good)), MODEL)
    with pytest.raises(ScheduleError) as e:
        check(parse(PER_RANK.format(head=head, rest=bad)), MODEL)
    assert message in str(e.value)
    assert f"in: {op}" in str(e.value)


def test_an_activation_is_there_at_every_rank_that_sends_it() -> None:
    """`k` at rank 0 gates rank 0 only; as a dependency of both it would do."""
    text = (
        "schedule s model=toy world=3 batch=4\ngroup w 0-1\ngroup first 0\ngroup s 2\nc: forward c1 @w\n"
        "k: forward pool @{} lane=x after=c\nact: transfer act(c1) w->s fan-in nbytes=160 after=k\n"
    )
    check(parse(text.format("w")), MODEL)
    with pytest.raises(ScheduleError, match=r"act\(c1\) is not there before it is used \(rank 1\)") as e:
        check(parse(text.format("first")), MODEL)
    assert "in: act:" in str(e.value)


def test_a_lane_works_in_program_order_whichever_groups_its_ops_are_of() -> None:
    text = (
        "schedule s model=toy world=2 batch=4\ngroup w 0-1\ngroup a 0\ngroup b 1\nf: forward c1 @w\n"
        "a: forward pool @a\nb: forward pool @b{}\ng: forward c2 @w\n"
    )
    check(parse(text.format("")), MODEL)
    for lane in (" lane=x", " lane=x after=f"):
        with pytest.raises(ScheduleError, match="is not there before it is used"):
            check(parse(text.format(lane)), MODEL)


@settings(max_examples=50, deadline=None)
@given(legal_schedules(MODEL))
def test_random_schedules_are_legal(schedule: Schedule) -> None:
    check(schedule, MODEL)
    check(parse(schedule.text()), MODEL)


@settings(max_examples=50, deadline=None)
@given(legal_schedules(MODEL))
def test_without_its_backward_pass_no_random_schedule_is_legal(schedule: Schedule) -> None:
    ops = tuple(o for o in schedule.ops if not (isinstance(o, Compute) and o.phase is Phase.BACKWARD))
    names = {o.name for o in ops}
    bare = tuple(replace(o, after=tuple(a for a in o.after if a in names)) for o in ops)
    with pytest.raises(ScheduleError):
        check(replace(schedule, ops=bare), MODEL)


def test_a_schedule_for_another_model() -> None:
    with pytest.raises(ScheduleError, match="numel"):
        check(build("all_reduce", toy(2), 3), toy(3))
