from __future__ import annotations

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.model import zoo
from stanza_sim.model.extract import extract
from stanza_sim.model.extract.__main__ import fresh
from stanza_sim.model.profile import ModelProfile

TRUNK = {"iresnet18": 24_025_600, "iresnet50": 43_590_848, "lstm_2048_512": 9_445_376}


def extracted(name: str, classes: int) -> ModelProfile:
    source = zoo.WIDE[name]
    return extract(source.factory, name=name, input_shape=source.input_shape, factory_kwargs={"classes": classes})


@pytest.mark.parametrize("name", zoo.WIDE)
def test_tables_equal_a_fresh_extraction_at_any_number_of_classes(name: str) -> None:
    assert zoo.get(name) == fresh(name)
    for classes in (7, 2_000_000):
        made = zoo.load_model(name, factory_kwargs={"classes": classes})
        assert made == extracted(name, classes)
        assert made.numel == TRUNK[name] + 512 * classes


def test_parameters_are_those_published() -> None:
    # LSTM-2048-512 has 0.83 B with 512-dimensional input vectors of all words (Jozefowicz et al., table 1).
    lstm = zoo.get("lstm_2048_512")
    assert round((lstm.numel + 793_471 * 512) / 1e9, 2) == 0.82
    # Four gates of 2,048 cells see the word and the projected state, with one bias each; then the projection.
    assert lstm.numel - lstm.blocks[-1].numel == 4 * 2048 * (512 + 512 + 1) + 2048 * 512


def test_other_arguments_are_refused() -> None:
    assert zoo.load_model("iresnet18", factory_kwargs={"classes": 100_000}) == zoo.get("iresnet18")
    assert zoo.load_model("iresnet18", boundary="head").boundary == 10
    for wrong in (0, -1, 1.5, True, "many"):
        with pytest.raises(InputError, match=r"model iresnet18: classes is .*\n.*whole number"):
            zoo.load_model("iresnet18", factory_kwargs={"classes": wrong})
    with pytest.raises(InputError, match="table for input_shape"):
        zoo.load_model("iresnet18", factory_kwargs={"classes": 10, "width": 2})
    with pytest.raises(InputError, match="table for input_shape"):
        zoo.load_model("iresnet18", input_shape=(3, 224, 224))


def test_a_head_with_a_margin_is_in_fp32_and_passes_over_its_logits() -> None:
    plain, margin = zoo.get("iresnet18").blocks[-1], zoo.get("iresnet50").blocks[-1]
    assert (plain.fp32, margin.fp32) == (False, True)
    assert not any(block.fp32 for block in zoo.get("iresnet50").blocks[:-1])
    logits = margin.output_numel * 4
    more = [sum(w.forward.sample_nbytes for w in head.work) / logits for head in (plain, margin)]
    assert more[0] == pytest.approx(1, rel=0.01)  # written once
    assert more[1] == pytest.approx(9, rel=0.01)  # clamp, acos, cos and scale read and write each
    weights = 512 * margin.output_numel * 4
    normalised = [w.forward.fixed_nbytes for w in margin.work if w.kind == "elementwise"]
    assert 3 <= normalised[0] / weights < 3.1
