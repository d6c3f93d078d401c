"""Logs of nccl-tests: what is read from them, what is passed over, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.importers.nccl_tests import NcclLog, read_logs
from stanza_sim.schedule import CollectiveKind
from tests.importers.logs import HEAD, line, log, ranks


def read(tmp_path: Path, text: str, **more: int) -> NcclLog:
    path = tmp_path / "a.log"
    path.write_text(text)
    (found,) = read_logs([path], **more)
    return found


def refused(tmp_path: Path, text: str, name: str = "a.log", **more: int) -> str:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_logs([path], **more)
    return str(caught.value)


def test_a_log_as_it_is_printed(tmp_path: Path) -> None:
    found = read(tmp_path, log([(1024, 9.5), (1048576, 59.4)], hosts=2, per_host=4))
    assert found.by_host == (4, 4)
    assert (found.gpus, found.gpus_per_process, found.device) == (8, 4, "NVIDIA A100-SXM4-40GB")
    assert [(r.kind, r.nbytes) for r in found.rows] == [(CollectiveKind.ALL_REDUCE, n) for n in (1024, 1048576)]
    assert [r.seconds for r in found.rows] == pytest.approx([9.5e-6, 59.4e-6])


def test_what_other_programs_print_is_passed_over(tmp_path: Path) -> None:
    """NCCL INFO lines, mpirun's tags, carriage returns, N/A for #wrong, times of zero, and a last line cut short."""
    text = log([(0, 0.0), (8, 0.0), (1024, 9.5)], wrong="N/A")
    text = text.replace("# Out of bounds", "a100-3:41:57 [0] NCCL INFO Connected all rings\n# Out of bounds")
    text += "        4096          1024     float     sum a100-3:41:57 [0] NCCL INFO comm 0x55 rank 0\n"
    tagged = "\r\n".join(f"[1,0]<stdout>:{row}" for row in text.splitlines())
    found = read(tmp_path, f"{tagged}\r\n[1,0]<stdout>:        2048     512   float   sum")
    assert [(r.nbytes, r.seconds) for r in found.rows] == [(1024, pytest.approx(9.5e-6))]


@pytest.mark.parametrize("keep", [5, 6, 7, 9, 10, 12])
def test_a_log_that_ends_in_the_middle_of_a_line(tmp_path: Path, keep: int) -> None:
    whole = HEAD + ranks(1, 2) + line(1024, 9.5) + line(2048, 10.5)
    cut = whole.rstrip("\n").rpartition("\n")
    last = "  ".join(cut[2].split()[:keep])
    found = read(tmp_path, f"{cut[0]}\n{last}")
    assert [r.nbytes for r in found.rows] == [1024, 2048][: 1 if keep < 7 else 2]


def test_older_logs_have_no_root_and_name_no_program(tmp_path: Path) -> None:
    header = "#\n#   size  count  type  redop  time  algbw  busbw  error  time  algbw  busbw  error\n#    (B)\n"
    rows = "  1048576   262144   float   sum   59.4  17.65  17.65  2e-07   60.1  17.4  17.4  2e-07\n"
    older = "#   Rank  0 Pid  3001 on   node1 device  0 [0x07] Tesla V100\n#   Rank  1 Pid  3001 on   node1 device  1\n"
    found = read(tmp_path, older + header + rows)
    assert (found.by_host, found.gpus_per_process) == ((2,), 2)
    assert [(r.kind, r.nbytes, r.seconds) for r in found.rows] == [
        (CollectiveKind.ALL_REDUCE, 1048576, pytest.approx(59.4e-6))
    ]


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("all_reduce_perf", CollectiveKind.ALL_REDUCE),
        ("reduce_scatter_perf", CollectiveKind.REDUCE_SCATTER),
        ("all_gather_perf", CollectiveKind.ALL_GATHER),
        ("broadcast_perf", CollectiveKind.BROADCAST),
    ],
)
def test_each_program_and_what_its_columns_tell(tmp_path: Path, program: str, kind: CollectiveKind) -> None:
    told = log([(1048576, 59.4)], hosts=1, per_host=4, kind=kind, program=program)
    found = read(tmp_path, told)
    assert [r.kind for r in found.rows] == [kind]
    silent = "".join(row + "\n" for row in told.splitlines() if "_perf" not in row)
    assert [r.kind for r in read(tmp_path, silent).rows] == [kind]


def test_where_gpus_are_can_be_stated(tmp_path: Path) -> None:
    silent = HEAD + line(1024, 9.5)
    assert read(tmp_path, silent, hosts=3, gpus_per_host=2).by_host == (2, 2, 2)
    one_name = log([(1024, 9.5)], hosts=1, per_host=8)  # containers that share a host's name
    assert read(tmp_path, one_name, hosts=2).by_host == (4, 4)
    assert read(tmp_path, one_name, gpus_per_host=2).by_host == (2, 2, 2, 2)
    assert read(tmp_path, one_name, hosts=4, gpus_per_host=2).by_host == (2, 2, 2, 2)


def test_one_process_a_gpu(tmp_path: Path) -> None:
    found = read(tmp_path, HEAD.replace("nGpus 4", "nGpus 1") + ranks(1, 4, processes=4) + line(1024, 9.5))
    assert found.gpus_per_process == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("hello\nworld\n", "a.log: holds no line of times"),
        (HEAD + line(1024, 9.5), "does not say which GPUs it is of"),
        (HEAD + ranks(1, 4).replace("Rank  2", "Rank 12") + line(1024, 9.5), "has no line for rank 2"),
        (
            HEAD + ranks(1, 2) + "   1024    256  float   sum\n" + line(2048, 9.5),
            "a.log:8: a line of times ends too soon",
        ),
        (HEAD + ranks(1, 2) + line(1024, 9.5).replace("9.50", "fast") + line(2048, 9.5), "'fast' is no time"),
        (HEAD + ranks(1, 2) + line(1024, -9.5) + line(2048, 9.5), "'-9.50' is no time"),
        (log([(1024, 9.5)], program="alltoall_perf"), "alltoall is not simulated"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(tmp_path, text)


def test_gpus_that_contradict_the_log_are_refused(tmp_path: Path) -> None:
    text = log([(1024, 9.5)], hosts=1, per_host=8)
    assert "has 8 ranks, but 3 hosts of 2 GPUs are 6" in refused(tmp_path, text, hosts=3, gpus_per_host=2)
    assert "not so many on each of 3 hosts" in refused(tmp_path, text, hosts=3)
    assert "not so many on each" in refused(tmp_path, text, gpus_per_host=3)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none.log", "no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(InputError, match=says):
            read_logs([path])


def test_a_table_is_several_runs(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "gpus,bytes,time_us_out_of_place,busbw_GBps\n4,1024,9,0\n4,0,1,0\n12,1024,20,0\n12,2048,0,0\n1,8,3,0\n"
    )
    found = read_logs([path], gpus_per_host=8)
    assert [(r.gpus, r.by_host, len(r.rows)) for r in found] == [(1, (1,), 1), (4, (4,), 1), (12, (6, 6), 1)]
    assert [r.gpus_per_process for r in found] == [1, 4, 6]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpus,bytes,busbw_GBps\n", "t.csv:1: has no column 'time_us_out_of_place'"),
        ("gpus,bytes,time_us_out_of_place\n", "holds no row"),
        ("gpus,bytes,time_us_out_of_place\n2,8,9\n2,many,9\n", "t.csv:3: bytes is 'many'"),
        ("gpus,bytes,time_us_out_of_place\n2.5,8,9\n", "t.csv:2: gpus is '2.5'"),
        ("gpus,bytes,time_us_out_of_place\n2,8,-9\n", "t.csv:2: time_us_out_of_place is '-9'"),
        ("gpus,bytes,time_us_out_of_place\n0,8,9\n", "t.csv:2: gpus is 0"),
        ("gpus,bytes,time_us_out_of_place\n2,8\n", "t.csv:2: time_us_out_of_place is None"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(tmp_path, text, "t.csv", gpus_per_host=8)


def test_a_table_does_not_say_how_many_gpus_a_host_has(tmp_path: Path) -> None:
    assert "state --gpus-per-host" in refused(tmp_path, "gpus,bytes,time_us_out_of_place\n2,8,9\n", "t.csv")
