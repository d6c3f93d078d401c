"""The order of cases, the run against a bench, and the journal that a run can be continued from."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError, RunError
from stanza_sim.studies.validate.journal import NAME, Header, begin, measurements_in, read, resume
from stanza_sim.studies.validate.runner import order, results, run
from stanza_sim.studies.validate.suite import Case
from tests.studies.validate.validate_fakes import FakeBench, measured, predicted

CASES = tuple(
    Case(index=i, network=network, model=model, strategy="ring")
    for i, (network, model) in enumerate([("n1", "a"), ("n2", "a"), ("n1", "b"), ("n3", "c"), ("n2", "c")])
)


def header(**changes) -> Header:
    facts = {
        "suite": "small",
        "digest": "d",
        "machine": {"cores": "2"},
        "conditions": {"torch": "2"},
        "date": "2026-01-01",
    }
    return Header(**(facts | changes))


@given(st.integers(0, 2**40), st.integers(1, 5))
def test_every_repeat_has_every_case_once_and_every_network_once(seed, repeats):
    visits = order(CASES, repeats, seed)
    assert visits == order(CASES, repeats, seed)
    for repeat in range(repeats):
        here = [v for v in visits if v.repeat == repeat]
        assert Counter(v.network for v in here) == {"n1": 1, "n2": 1, "n3": 1}
        assert sorted((c for v in here for c in v.cases), key=lambda c: c.index) == list(CASES)
        assert all(c.network == v.network for v in here for c in v.cases)
    assert [v.repeat for v in visits] == sorted(v.repeat for v in visits)


def test_the_order_is_random_and_differs_between_repeats():
    found = {tuple(c.name for v in order(CASES, 1, seed) for c in v.cases) for seed in range(30)}
    assert len(found) > 10
    visits = order(CASES, 6, 1)
    assert len({tuple(v.network for v in visits[3 * i : 3 * i + 3]) for i in range(6)}) > 1


def test_everything_is_predicted_before_anything_is_measured(tmp_path, bench):
    told = []
    with begin(tmp_path / "out", header()) as journal:
        found = run(CASES, bench, journal, repeats=3, seed=1, tell=lambda *step: told.append(step))
    asked = [what for what, _ in bench.log]
    assert asked.index("measure") > max(i for i, what in enumerate(asked) if what in ("predict", "calibrate"))
    assert [name for what, name in bench.log if what == "calibrate"] == ["n1", "n2", "n3"]
    assert Counter(bench.measurements()) == {c.name: 3 for c in CASES}
    assert asked.count("open") == asked.count("close") == 9
    assert [r.case for r in found] == list(CASES)
    assert all(len(r.measured) == 3 for r in found)
    assert [step for _, step, _ in told] == list(range(1, 19)), "three calibrations, fifteen measurements"
    assert {total for *_, total in told} == {18}
    assert told[0][0] == "n1: n1 is as it is; 2 predicted"
    assert "100.0 ms predicted, 100.0 ms measured, +0.0%" in told[-1][0]


@pytest.mark.parametrize("fail_at", [0, 1, 4, 7, 14])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunError("rank 1 died")])
def test_a_run_that_was_interrupted_goes_on_where_it_was(tmp_path, bench, fail_at, error):
    bench.fail_at, bench.error = fail_at, error
    out = tmp_path / "out"
    with pytest.raises(type(error)), begin(out, header()) as journal:
        run(CASES, bench, journal, repeats=3, seed=1)
    assert bench.opened == [], "the network is closed"
    assert measurements_in(out / NAME) == fail_at
    after = FakeBench()
    with resume(out, header(date="later")) as journal:
        found = run(CASES, after, journal, repeats=3, seed=1)
    assert [what for what, _ in after.log if what in ("predict", "calibrate")] == [], "all that is known"
    assert bench.measurements() + after.measurements() == [c.name for v in order(CASES, 3, 1) for c in v.cases]
    assert all(len(r.measured) == 3 for r in found)
    assert journal.done.header.date == "2026-01-01"


def test_only_what_was_not_predicted_is_predicted_when_it_goes_on(tmp_path, bench):
    class Failing(FakeBench):
        def calibrate(self, network: str, cases: list[Case]) -> str:
            if network == "n2":
                raise RunError("too busy")
            return super().calibrate(network, cases)

    with pytest.raises(RunError), begin(tmp_path / "out", header()) as journal:
        run(CASES, Failing(), journal, repeats=1, seed=1)
    with resume(tmp_path / "out", header()) as journal:
        run(CASES, bench, journal, repeats=1, seed=1)
        assert journal.done.notes == {n: [f"{n} is as it is"] for n in ("n1", "n2", "n3")}
    assert [name for what, name in bench.log if what == "calibrate"] == ["n2", "n3"]


def test_more_repeats_can_be_added(tmp_path, bench):
    with begin(tmp_path / "out", header()) as journal:
        run(CASES, bench, journal, repeats=1, seed=1)
    with resume(tmp_path / "out", header()) as journal:
        found = run(CASES[:2], bench, journal, repeats=4, seed=1)
    assert [len(r.measured) for r in found] == [4, 4]
    assert [len(r.measured) for r in results(CASES, journal)] == [4, 4, 1, 1, 1]


def test_a_journal_reads_back_to_what_was_written(tmp_path):
    first, second = predicted(0.1, exposed=0.25, servers=1, forward=0.06), replace(predicted(1 / 3), small_s=0.3)
    with begin(tmp_path, header()) as journal:
        journal.note("n", "as it is")
        journal.predict("a", first)
        journal.predict("b", second)
        journal.measure("a", 2, measured(0.1))
        journal.measure("a", 0, measured(1 / 7))
        anew = replace(measured(0.2), predicted=predicted(0.19), drift=-0.1, others=0.2)
        journal.measure("b", 0, anew)
        done = journal.done
    found, size = read(tmp_path / NAME)
    assert (found, size) == (done, (tmp_path / NAME).stat().st_size)
    assert found.predicted == {"a": first, "b": second}
    assert found.measured == {"a": {2: measured(0.1), 0: measured(1 / 7)}, "b": {0: anew}}


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
    with begin(tmp_path, header()) as journal:
        journal.predict("a", predicted())
        journal.measure("a", 0, measured())
    path = tmp_path / NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with resume(tmp_path, header()) as journal:
        assert journal.done.measured == {}
        journal.measure("a", 0, measured())
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digest": "e"}, "another version of the suite"),
        ({"suite": "other", "digest": "e"}, "suite other, not small"),
        ({"machine": {"cores": "4"}}, "cores '4', not '2'"),
        ({"conditions": {"torch": "3"}}, "torch '3', not '2'"),
    ],
)
def test_a_journal_of_something_else_is_not_continued(tmp_path, changes, message):
    with begin(tmp_path, header()):
        pass
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(InputError, match=f"cannot be continued: now it would be {message}"):
        resume(tmp_path, header(**changes))
    assert (tmp_path / NAME).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"hello\n", b'{"kind": "note", "network": "n", "text": "t"}\n', b"\xff\n"])
def test_what_is_not_a_journal_is_not_continued(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(InputError, match="journal"):
        resume(tmp_path, header())


def test_there_must_be_something_to_continue(tmp_path):
    with pytest.raises(InputError, match="there is nothing to continue here"):
        resume(tmp_path, header())


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_full_disk_is_said_and_leaves_no_half_line(tmp_path):
    with begin(tmp_path, header()) as journal:
        before = (tmp_path / NAME).read_bytes()
        journal._file.close()
        journal._file = FULL.open("ab", buffering=0)
        with pytest.raises(InputError, match=r"journal.jsonl: cannot be written: No space left on device"):
            journal.measure("a", 0, measured())
    assert (tmp_path / NAME).read_bytes() == before
    assert journal.done.measured == {}
