"""What a sweep varies: lists, ranges, units, and what is refused."""

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.studies.sweep.vary import points, read_axes, read_axis, scale_of


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("nodes=2,4,8", ["2", "4", "8"]),
        ("nodes=2..5", ["2", "3", "4", "5"]),
        ("nodes=2..9:3", ["2", "5", "8"]),
        ("nodes=2,4..6,2", ["2", "4", "5", "6"]),
        ("network.rate=1Gbps..3Gbps:1Gbps", ["1Gbps", "2Gbps", "3Gbps"]),
        ("network.rate=1Gbps, 2.5Gbps", ["1Gbps", "2.5Gbps"]),
        ("models.0.scale.bytes=0.1..0.3:0.1", ["0.1", "0.2", "0.3"]),
        ("models=[vgg16, alexnet],[vgg19]", ["[vgg16, alexnet]", "[vgg19]"]),
        ("strategies.0.settings.bucket=1MiB..3MiB:1MiB", ["1MiB", "2MiB", "3MiB"]),
        ("cluster=../a.yaml,star", ["../a.yaml", "star"]),
        ("nodes=0x4,1_0,+3,010,4", ["4", "10", "3"]),
        ("nodes=0x2..1_0:4", ["2", "6", "10"]),
        ("simulation.jitter.spread=1e-2,.5", ["0.01", "0.5"]),
        ("simulation.jitter.spread=1e-2..3e-2:1e-2", ["0.01", "0.02", "0.03"]),
        ('models.0.name="4",1e,true', ['"4"', "1e", "true"]),
    ],
)
def test_values(text, values):
    assert list(read_axis(text).values) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes", "is not key=values"),
        ("=1", "is not key=values"),
        ("nodes=", "no values"),
        ("nodes=2,,3", "a value is missing"),
        ("nodes=8..2", "ends before it begins"),
        ("nodes=2..8:0", "a step must be positive"),
        ("nodes=2..x", "is not a range"),
        ("network.rate=1Gbps..3Gbps", "has no step"),
        ("network.rate=1Gbps..3MBps:1Gbps", "the units of"),
        ("network.rate=0.5..1.5", "has no step"),
        ("nodes=1..2000000", "has 2000000 values"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(InputError, match=message) as error:
        read_axis(text)
    assert "--vary" in str(error.value)
    assert error.value.hint


def test_axes():
    with pytest.raises(InputError, match="needs something to vary"):
        read_axes([])
    with pytest.raises(InputError, match="nodes is varied twice"):
        read_axes(["nodes=1,2", "nodes=3"])
    with pytest.raises(InputError, match="points are too many"):
        read_axes(["nodes=1..1000", "seed=1..1000"])
    axes = read_axes(["nodes=2,4", "seed=1,2"])
    assert points(axes) == [("2", "1"), ("2", "2"), ("4", "1"), ("4", "2")]


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("a=1,2", ""),
        ("a=1,2.5", ""),
        ("a=1Gbps,500Mbps", "B/s"),
        ("a=1ms,2s", "s"),
        ("a=1MiB,2MB", "B"),
        ("a=1TFLOPS,2GFLOPS", "FLOPS"),
        ("a=1,ring", None),
        ("a=1Gbps,1MB", None),
        ("a=1e-2,1e-7", ""),
        ("a=0B,1MB", "B"),
    ],
)
def test_numbers_on_an_axis_are_written_as_they_are_read(text, unit):
    axis = read_axis(text)
    scale = scale_of(axis)
    if unit is None:
        assert scale is None
        return
    assert scale is not None
    assert scale.unit == unit
    for value in axis.values:
        assert scale.number(scale.text(scale.number(value))) == pytest.approx(scale.number(value), rel=1e-6)
