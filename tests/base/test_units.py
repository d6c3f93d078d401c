"""Quantities with units: exact values, one spelling each, and errors that say what would be right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from stanza_sim.base import units
from stanza_sim.base.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8bps", 1.0),
        ("1kbps", 125.0),
        ("500Mbps", 62.5e6),
        ("10Gbps", 1.25e9),
        ("1.6Tbps", 200e9),
        ("900GB/s", 900e9),
        ("1GiB/s", 2.0**30),
        (" 10 Gbps ", 1.25e9),
    ],
)
def test_rates_are_bytes_per_second(text: str, expected: float) -> None:
    assert units.rate(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("25us", 25e-6),
        ("25\u00b5s", 25e-6),
        ("25\u03bcs", 25e-6),
        ("1.5ms", 1.5e-3),
        ("60s", 60.0),
        ("7ns", 7e-9),
        ("0s", 0.0),
    ],
)
def test_times_are_seconds(text: str, expected: float) -> None:
    assert units.seconds(text) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("64MiB", 64 * 2**20), ("25MB", 25_000_000), ("1.5KiB", 1536), ("0.1GB", 10**8), ("16GiB", 2**34), ("3B", 3)],
)
def test_sizes_are_whole_bytes(text: str, expected: int) -> None:
    size = units.nbytes(text)
    assert size == expected
    assert isinstance(size, int)


def test_flops() -> None:
    assert units.flops("15.7TFLOPS") == 15.7e12


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10GB", "GB/s"),
        ("10gbps", "did you mean Gbps"),
        ("10mbps", "did you mean Mbps"),
        ("10GBps", "GB/s for bytes per second, Gbps for bits"),
        ("10Gb/s", "did you mean Gbps"),
        ("10Gbit", "did you mean Gbps"),
        ("10", "no unit"),
        ("0", "no unit"),
        (10, "no unit"),
        (0, "no unit"),
        ("-1Gbps", "negative"),
        ("0Gbps", "zero"),
        ("inf", "not a rate"),
        ("nanGbps", "not a rate"),
        ("9" * 400 + "Gbps", "too large"),
        ("9" * 30 + "Gbps", "too large"),
        ("0." + "0" * 30 + "1bps", "too small"),
        ("1e3Gbps", "unknown unit"),
        ("", "not a rate"),
        (None, "nothing is not a rate"),
        (True, "not a rate"),
        (["10Gbps"], "not a rate"),
    ],
)
def test_a_wrong_rate_says_what_would_be_right(text: object, says: str) -> None:
    with pytest.raises(InputError) as caught:
        units.rate(text, where="file.yaml: nic.rate")
    assert says in str(caught.value)
    assert str(caught.value).startswith("file.yaml: nic.rate: ")
    assert len(str(caught.value)) < 250


def test_other_dimensions_refuse_foreign_units() -> None:
    for parse, text, says in [
        (units.nbytes, "10Gbps", "is a rate"),
        (units.nbytes, "64mib", "did you mean MiB"),
        (units.nbytes, "0.5B", "whole number"),
        (units.nbytes, "-1B", "negative"),
        (units.nbytes, "0B", "zero"),
        (units.seconds, "25", "no unit"),
        (units.seconds, "1min", "25us"),
        (units.seconds, "-1s", "negative"),
        (units.flops, "15TFLOP", "did you mean TFLOPS"),
        (units.flops, "0TFLOPS", "zero"),
    ]:
        with pytest.raises(InputError, match=says):
            parse(text)


def test_zero_only_where_allowed() -> None:
    assert units.rate("0Gbps", zero=True) == 0.0
    assert units.nbytes("0B", zero=True) == 0
    with pytest.raises(InputError, match="zero"):
        units.seconds("0s", zero=False)
    with pytest.raises(InputError, match="too large"):
        units.seconds("9" * 30 + "s")


@given(st.floats(min_value=1.0, max_value=1e14))
def test_formatted_values_parse_back(value: float) -> None:
    assert units.rate(units.format_rate(value, digits=6)) == pytest.approx(value, rel=1e-5)
    if value < 1e13:
        assert units.nbytes(units.format_bytes(round(value), digits=15)) == round(value)
    if value < 1e9:
        assert units.seconds(units.format_time(value * 1e-9, digits=6)) == pytest.approx(value * 1e-9, rel=1e-5)
    if value >= 1e3:
        assert units.flops(units.format_flops(value, digits=6)) == pytest.approx(value, rel=1e-5)


def test_shown_forms() -> None:
    assert units.format_rate(1.25e9) == "10 Gbps"
    assert units.format_time(0.0123456) == "12.3 ms"
    assert units.format_time(0.0) == "0 s"
    assert units.format_bytes(553_430_176) == "553 MB"
    assert units.format_flops(15.7e12) == "15.7 TFLOPS"


class _Model(BaseModel):
    rate: units.Rate
    wait: units.Seconds = 0.0
    timeout: units.PositiveSeconds = 1.0
    size: units.Size = 1
    first: units.SizeOrZero = 0
    speed: units.Flops = 1.0


def test_pydantic_types() -> None:
    model = _Model.model_validate(
        {"rate": "10Gbps", "wait": "0s", "timeout": "60s", "size": "1MiB", "first": "0B", "speed": "1TFLOPS"}
    )
    assert (model.rate, model.wait, model.timeout) == (1.25e9, 0.0, 60.0)
    assert (model.size, model.first, model.speed) == (2**20, 0, 1e12)
    with pytest.raises(ValidationError) as caught:
        _Model.model_validate({"rate": "10GB", "timeout": "0s", "size": "0B"})
    errors = {e["loc"][0]: e for e in caught.value.errors()}
    assert set(errors) == {"rate", "timeout", "size"}
    assert "GB/s" in errors["rate"]["ctx"]["hint"]
