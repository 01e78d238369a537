from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from llmmem.errors import InputError
from llmmem.report import (
    COLUMNS,
    Record,
    check_report_path,
    console_text,
    frame,
    load_report,
    write,
)
from llmmem.report.tables import markdown
from llmmem.results import (
    Components,
    Estimate,
    Peaks,
    PhaseResult,
    Rules,
    RunResult,
    Trace,
)
from llmmem.setups import Setup
from llmmem.units import GIB, MIB

if TYPE_CHECKING:
    from pathlib import Path

DESIGNED_COLUMNS = """
schema, test, setup, phase, model, task, mode, method, quantization, adapter, optimizer, dtype,
batch_size, seq_len, gradient_checkpointing, kv_cache, parallel, device, gpu, gpu_index, source, outcome,
message, notes, metric, weights_bytes, gradients_bytes, optimizer_bytes, activations_bytes,
temporaries_bytes, reserve_bytes, context_bytes, context_source, held_before_bytes,
peak_allocated_bytes, peak_reserved_bytes, peak_process_bytes, unknown_bytes, rule_bytes, trace_bytes,
trace_error_percent, needed_allocated_bytes, needed_reserved_bytes, needed_process_bytes,
limit, limit_bytes, headroom_bytes, baseline_bytes, change_bytes, step_seconds,
llmmem, torch, transformers, peft, bitsandbytes, cuda, driver
"""

SETUP = Setup(
    model="meta-llama/Llama-3.2-1B",
    method="qlora",
    gradient_checkpointing={"use_reentrant": True},
    optimizer="adamw_torch",
)
VERSIONS = {"llmmem": "0.1.0", "torch": "2.14.1", "cuda": "13.0", "driver": None}
COMPONENTS = Components(2 * GIB, GIB, 3 * GIB, 4 * GIB, 5 * MIB)
PEAK = COMPONENTS.total

ESTIMATE = Estimate(
    setup=SETUP,
    gpu="h100",
    rules=Rules(9 * GIB, "N x 0.5"),
    trace=Trace(
        "ok",
        "",
        Peaks(PEAK + 7, 12 * GIB, 13 * GIB),
        COMPONENTS,
        (PhaseResult("load", Peaks(2 * GIB + 1, 3 * GIB, 4 * GIB)),),
        context_bytes=GIB,
        needed=Peaks(PEAK + 7, 12 * GIB, 13 * GIB),
    ),
    versions=VERSIONS,
)
RUN = RunResult(
    setup=SETUP,
    device="sim:h100",
    source="simulated",
    outcome="ok",
    gpu="NVIDIA H100 80GB HBM3",
    peaks=Peaks(PEAK, 12 * GIB, 13 * GIB),
    components=COMPONENTS,
    phases=(
        PhaseResult("load", Peaks(2 * GIB, 3 * GIB, 4 * GIB), Components(weights=2 * GIB)),
        PhaseResult("forward", Peaks(5 * GIB, 6 * GIB, None)),
    ),
    context_bytes=GIB,
    context_source="modelled",
    held_before_bytes=0,
    versions=VERSIONS,
    estimate=ESTIMATE,
)
OUT_OF_MEMORY = RunResult(
    setup=Setup(model="m", mode="forward"),
    device="cuda:0",
    source="measured",
    outcome="oom",
    message='CUDA out of memory. Tried to allocate 20 MiB | "GPU 0"\nsee the manual',
    step_seconds=0.1 + 0.2,
)
PLAIN_TEST = Record(
    device="sim:rtx4090",
    source="simulated",
    outcome="ok",
    test="tests/test_mine.py::test_training[bold]",
    metric="allocated",
    peaks=Peaks(4_000_256, 20 * MIB, None),
    held_before_bytes=512,
    limit_bytes=4_000_256,
)


def records() -> list[Record]:
    return [
        Record.from_run(RUN, test="tests/test_demo.py::test_qlora[1B]", limit_bytes=12 * GIB),
        Record.from_estimate(ESTIMATE, baseline_bytes=13 * GIB - 1),
        Record.from_run(OUT_OF_MEMORY),
        PLAIN_TEST,
    ]


def test_columns_are_those_of_the_design_in_its_order() -> None:
    designed = [name.strip() for name in DESIGNED_COLUMNS.split(",")]

    assert list(frame(records()).columns) == designed
    assert list(frame([]).columns) == designed


def test_every_column_keeps_its_dtype_whatever_is_missing() -> None:
    for some in (records(), [PLAIN_TEST], []):
        assert {name: str(dtype) for name, dtype in frame(some).dtypes.items()} == dict(COLUMNS)


def test_a_record_is_one_row_in_total_and_one_per_phase() -> None:
    report = frame(records())

    assert list(report["phase"]) == ["total", "load", "forward", "total", "load", "total", "total"]


def test_a_row_says_what_ran_and_where() -> None:
    row = frame(records()).iloc[0]

    assert Setup.from_mapping(json.loads(row["setup"])) == SETUP
    assert (row["model"], row["task"], row["mode"]) == (SETUP.model, "causal-lm", "train")
    assert (row["method"], row["quantization"], row["adapter"]) == ("qlora", "nf4", "LORA r=16")
    assert (row["optimizer"], row["dtype"]) == ("adamw_torch", "bfloat16")
    assert (row["batch_size"], row["seq_len"]) == (1, 2048)
    assert row["gradient_checkpointing"]
    assert row["parallel"] == "none"
    assert (row["device"], row["gpu"], row["source"]) == ("sim:h100", RUN.gpu, "simulated")
    assert (row["llmmem"], row["torch"], row["cuda"]) == ("0.1.0", "2.14.1", "13.0")


def test_a_table_that_parallelises_is_named_with_its_size() -> None:
    setup = Setup(model="m", parallel={"strategy": "fsdp2", "world_size": 64})
    report = frame([Record(device="cuda:0", source="measured", outcome="ok", setup=setup)])

    assert report["parallel"][0] == "fsdp2x64"


def test_components_sum_to_the_allocated_peak_and_the_rest_to_the_others() -> None:
    row = frame(records()).iloc[0]

    parts = ("weights", "gradients", "optimizer", "activations", "temporaries")
    assert sum(row[f"{part}_bytes"] for part in parts) == row["peak_allocated_bytes"] == PEAK
    assert row["peak_allocated_bytes"] + row["reserve_bytes"] == row["peak_reserved_bytes"]
    assert row["peak_reserved_bytes"] + row["context_bytes"] == row["peak_process_bytes"]
    assert row["context_source"] == "modelled"


def test_the_trace_is_compared_with_the_run_for_each_phase() -> None:
    total, load, forward = (frame(records()).iloc[row] for row in range(3))

    assert total["rule_bytes"] == 9 * GIB
    assert total["trace_bytes"] == PEAK + 7
    assert total["trace_error_percent"] == 100 * 7 / PEAK
    assert load["trace_bytes"] == 2 * GIB + 1
    assert load["trace_error_percent"] == 100 * 1 / (2 * GIB)
    assert pd.isna(forward["trace_bytes"])
    assert pd.isna(forward["trace_error_percent"])


def test_an_estimate_is_its_trace_and_is_not_compared_with_itself() -> None:
    row = frame([Record.from_estimate(ESTIMATE)]).iloc[0]

    assert (row["device"], row["source"], row["gpu"]) == ("estimate", "estimated", "h100")
    assert row["peak_allocated_bytes"] == row["trace_bytes"] == PEAK + 7
    assert row["context_source"] == "modelled"
    assert pd.isna(row["trace_error_percent"])


def test_an_estimate_that_did_not_reach_the_end_says_nothing_about_the_run() -> None:
    broken = replace(ESTIMATE, trace=replace(ESTIMATE.trace, outcome="oom"))
    row = frame([Record.from_run(replace(RUN, estimate=broken))]).iloc[0]

    assert pd.isna(row["trace_bytes"])
    assert pd.isna(row["trace_error_percent"])
    assert row["rule_bytes"] == 9 * GIB


def test_a_run_that_did_not_reach_the_end_is_not_held_against_its_estimate() -> None:
    row = frame([Record.from_run(replace(RUN, outcome="oom"))]).iloc[0]

    assert row["trace_bytes"] == PEAK + 7
    assert pd.isna(row["trace_error_percent"])


@pytest.mark.parametrize(
    ("metric", "headroom"),
    [("allocated", 12 * GIB - PEAK), ("reserved", 0), ("process", -GIB)],
)
def test_headroom_is_what_the_limit_leaves_of_the_metric(metric: str, headroom: int) -> None:
    record = Record.from_run(RUN, metric=metric, limit_bytes=12 * GIB)

    assert frame([record])["headroom_bytes"][0] == headroom


def test_change_is_what_the_metric_has_grown_by() -> None:
    record = Record.from_run(RUN, baseline_bytes=14 * GIB)

    assert frame([record])["change_bytes"][0] == -GIB


def test_the_limit_is_on_the_row_of_the_whole_only() -> None:
    report = frame([Record.from_run(RUN, limit_bytes=12 * GIB, baseline_bytes=GIB)])

    for column in ("limit_bytes", "headroom_bytes", "baseline_bytes", "change_bytes"):
        assert list(report[column].isna()) == [False, True, True]


def test_what_is_not_known_is_missing_and_zero_is_zero() -> None:
    report = frame([Record.from_run(RUN), PLAIN_TEST])
    forward, plain = report.iloc[2], report.iloc[3]

    assert report["held_before_bytes"][0] == 0
    for column in ("peak_process_bytes", "context_bytes", "context_source", "weights_bytes"):
        assert pd.isna(forward[column])
    for column in ("setup", "model", "batch_size", "gradient_checkpointing", "weights_bytes"):
        assert pd.isna(plain[column])
    assert pd.isna(plain["message"])


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@pytest.mark.parametrize("count", [4, 1, 0])
def test_a_report_is_read_back_equal(tmp_path: Path, suffix: str, count: int) -> None:
    written = frame(records()[:count])
    path = tmp_path / f"report{suffix}"

    write(written, path)

    pd.testing.assert_frame_equal(load_report(path), written, check_exact=True)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_report_of_a_version_that_did_not_know_what_is_needed_is_read(
    tmp_path: Path, suffix: str
) -> None:
    added = ["limit", *(name for name in COLUMNS if name.startswith("needed_"))]
    written = frame(records())
    path = tmp_path / f"report{suffix}"
    if suffix == ".csv":
        written.drop(columns=added).to_csv(path, index=False)
    else:
        rows = json.loads(written.drop(columns=added).to_json(orient="records"))
        path.write_text(json.dumps(rows), encoding="utf-8")

    loaded = load_report(path)

    assert list(loaded.columns) == list(COLUMNS)
    assert loaded[added].isna().all(axis=None)
    assert dict(loaded.dtypes.astype(str)) == dict(COLUMNS)


def test_what_is_needed_is_on_the_row_of_the_whole_only() -> None:
    report = frame([Record.from_run(RUN)])

    assert list(report["needed_process_bytes"].isna()) == [False, True, True]
    assert report["needed_process_bytes"][0] == 13 * GIB


def test_an_estimate_that_does_not_fit_its_card_is_held_to_what_is_needed() -> None:
    trace = replace(ESTIMATE.trace, outcome="oom", needed=Peaks(20 * GIB, 21 * GIB, 22 * GIB))
    record = Record.from_estimate(replace(ESTIMATE, trace=trace), limit_bytes=14 * GIB)

    assert record.peaks.process == 13 * GIB
    assert record.headroom_bytes == -8 * GIB
    assert "needs 22.00 GiB" in " ".join(console_text([record], 120).split())
    assert "needed process" in markdown(frame([record]))


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_text_that_looks_like_something_else_is_read_back_as_text(
    tmp_path: Path, suffix: str
) -> None:
    texts = ["NA", "None", "1", "true", " spaced ", 'a "quote", a comma', "line\nbreak", "Größe"]
    written = frame([replace(PLAIN_TEST, test=text, message=text) for text in texts])

    write(written, tmp_path / f"report{suffix}")

    loaded = load_report(tmp_path / f"report{suffix}")
    assert list(loaded["test"]) == texts
    pd.testing.assert_frame_equal(loaded, written, check_exact=True)


ODD_TEXTS = [
    *(
        "carriage\rreturn",
        "\r",
        "both\r\nof them",
        "\n",
        "form\x0cfeed",
        "line\u2028separator",
        "\t",
    ),
    *(
        "a|b",
        "a\\|b",
        "end\\",
        '"',
        "'",
        ",",
        "\x1b[31m",
        "\x7f",
        "\ud800",
        "undecodable\udcff",
        "a\0b",
    ),
]


def test_odd_names_are_read_back_and_no_row_of_markdown_breaks(tmp_path: Path) -> None:
    written = frame([replace(PLAIN_TEST, test=text, message=text) for text in ODD_TEXTS])
    for name in ("report.csv", "report.json", "report.md"):
        write(written, tmp_path / name)

    for name in ("report.csv", "report.json"):
        loaded = load_report(tmp_path / name)
        pd.testing.assert_frame_equal(loaded, written, check_exact=True)
        assert list(loaded["test"][:15]) == ODD_TEXTS[:15]
        assert list(loaded["test"][15:]) == ["\\ud800", "undecodable\\udcff", "a\\x00b"]
    head, _, *rows = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) == len(ODD_TEXTS)
    for row in rows:  # an escaped character, or one that neither escapes nor ends a cell
        assert len(re.findall(r"(?:\\.|[^|\\])+", row)) == head.count("|") - 1


def test_figures_that_no_file_can_hold_are_missing_and_named(tmp_path: Path) -> None:
    odd = replace(PLAIN_TEST, limit_bytes=2**63, step_seconds=float("inf"), held_before_bytes=None)
    written = frame([odd])
    for name in ("report.csv", "report.json", "report.md"):
        write(written, tmp_path / name)

    row = load_report(tmp_path / "report.csv").iloc[0]
    assert row[["limit_bytes", "step_seconds"]].isna().all()
    assert row["notes"] == "limit_bytes 9223372036854775808 is beyond 64 bits"


def test_a_report_that_lacks_records_says_so_first(tmp_path: Path) -> None:
    for some in ([], records()):
        written = frame(some, incomplete="killed | by\nsomebody")
        for name in ("report.csv", "report.json"):
            write(written, tmp_path / name)
            loaded = load_report(tmp_path / name)
            first = loaded.iloc[0]
            assert (first["phase"], first["outcome"]) == ("session", "incomplete")
            assert first["message"] == "killed | by\nsomebody"
            pd.testing.assert_frame_equal(loaded, written, check_exact=True)
        write(written, tmp_path / "report.md")
        assert (
            (tmp_path / "report.md")
            .read_text()
            .startswith("**Incomplete**: killed | by somebody\n")
        )


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_bytes_are_read_back_exactly_beside_missing_ones(tmp_path: Path, suffix: str) -> None:
    odd = 2**53 + 1  # a float cannot hold it
    written = frame([replace(PLAIN_TEST, limit_bytes=odd), replace(PLAIN_TEST, limit_bytes=None)])

    write(written, tmp_path / f"report{suffix}")

    assert load_report(tmp_path / f"report{suffix}")["limit_bytes"][0] == odd


def test_json_is_a_list_of_rows_that_any_reader_understands(tmp_path: Path) -> None:
    write(frame(records()), tmp_path / "report.json")

    rows = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [list(row) for row in rows] == [list(COLUMNS)] * 7
    assert rows[0]["peak_allocated_bytes"] == PEAK
    assert rows[0]["gradient_checkpointing"] is True
    assert rows[0]["baseline_bytes"] is None
    assert {row["schema"] for row in rows} == {1}


def test_markdown_has_one_line_per_record_and_names_the_source(tmp_path: Path) -> None:
    write(frame(records()), tmp_path / "report.md")

    head, _, *lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    names = [name.strip() for name in head.strip("|").split("|")]
    assert len(lines) == 4
    assert "parallel" not in names  # not one of the main columns
    first = dict(zip(names, (cell.strip() for cell in lines[0].strip("|").split("|")), strict=True))
    assert first["source"] == "simulated"
    assert first["setup"] == "qlora bfloat16 1x2048 checkpointing adamw_torch"
    assert first["peak process"] == "13.00 GiB"
    assert first["headroom"] == "-1.00 GiB"
    assert first["trace off by"] == "+0.00%"
    assert first["baseline"] == ""
    assert 'Tried to allocate 20 MiB \\| "GPU 0" see the manual' in lines[2]


def test_markdown_leaves_out_columns_with_nothing_in_them(tmp_path: Path) -> None:
    write(frame([PLAIN_TEST]), tmp_path / "report.md")

    head = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()[0]
    assert "held before" not in head
    assert "model" not in head
    assert "limit" in head


def test_an_empty_report_can_be_written_in_every_format(tmp_path: Path) -> None:
    for name in ("report.csv", "report.json", "report.md"):
        write(frame([]), tmp_path / name)

    assert (tmp_path / "report.md").read_text(encoding="utf-8") == "Nothing was recorded.\n"


def test_parent_folders_are_created_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "nightly" / "report.csv"

    write(frame([]), path)
    write(frame(records()), path)

    assert [entry.name for entry in path.parent.iterdir()] == ["report.csv"]
    assert len(load_report(path)) == 7


@pytest.mark.parametrize("name", ["report.xlsx", "report", "report.parquet", "report.html", ".csv"])
def test_bad_format_to_write_names_the_accepted_ones(tmp_path: Path, name: str) -> None:
    for attempt in (check_report_path, lambda path: write(frame([]), path)):
        with pytest.raises(InputError, match=r"unknown report format .*\.csv, \.json, \.md"):
            attempt(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_bad_place_to_write_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InputError, match=r"cannot write report .*file"):
        write(frame([]), tmp_path / "file" / "report.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"cannot write report .*folder\.csv"):
        write(frame([]), tmp_path / "folder.csv")


def test_markdown_is_not_read_back(tmp_path: Path) -> None:
    write(frame([]), tmp_path / "report.md")

    with pytest.raises(InputError, match=r"unknown report format .*\.csv, \.json\)"):
        load_report(tmp_path / "report.md")


def test_bad_report_is_named_when_it_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read report .*absent\.csv.*No such file"):
        load_report(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty.csv", ""),
        ("other.csv", "a,b\n1,2\n"),
        ("empty.json", ""),
        ("broken.json", "[{"),
        ("object.json", "{}"),
        ("numbers.json", "[1]"),
        ("other.json", '[{"a": 1}]'),
    ],
)
def test_bad_report_is_named_when_it_is_no_report(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")

    with pytest.raises(InputError, match=f"cannot read report .*{name}"):
        load_report(tmp_path / name)


@pytest.mark.parametrize(("column", "value"), [("limit_bytes", "12 GiB"), ("schema", "2")])
def test_bad_value_in_a_report_is_refused(tmp_path: Path, column: str, value: str) -> None:
    text = frame(records()).astype(object)
    text.loc[1, column] = value
    text.to_csv(tmp_path / "report.csv", index=False)

    with pytest.raises(InputError, match=r"cannot read report .*report\.csv"):
        load_report(tmp_path / "report.csv")


def test_a_record_travels_as_json() -> None:
    for record in records():
        assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_console_table_fits_its_terminal_and_says_all(width: int) -> None:
    text = console_text(records(), width)

    assert max(map(len, text.splitlines())) <= width
    squeezed = "".join(text.split())
    for said in ("12.00GiB", "13.00GiB", "simulated", "estimated", "measured", "oom", "overlimit"):
        assert said in squeezed
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("width", "parts"),
    [
        (80, ["examples/test_llama_methods.py", "::test_full_fine_tuning_fits"]),
        (120, ["examples/", "test_llama_methods.py", "::test_full_fine_tuning_", "fits"]),
        (200, ["examples/test_llama_methods.py::test_full_fine_tuning_fits"]),
    ],
)
def test_the_console_table_breaks_a_test_id_between_its_parts(width: int, parts: list[str]) -> None:
    record = Record.from_run(RUN, test="".join(parts), limit_bytes=12 * 10**9, limit="12GB")
    lines = console_text([record], width).splitlines()

    assert [line.split()[0] for line in lines[2 : 2 + len(parts)]] == parts


def test_a_name_that_is_no_text_does_not_break_the_console_table() -> None:
    odd = replace(PLAIN_TEST, test="test_\udcff.py::test_" + "x" * 300)

    console_text([odd], 80).encode("utf-8")


def test_a_limit_is_shown_as_it_was_written_beside_gib() -> None:
    record = replace(PLAIN_TEST, limit_bytes=12 * 10**9, limit="12GB")

    assert "limit 12GB  11.18 GiB" in console_text([record], 120)
    assert "12GB (11.18 GiB)" in markdown(frame([record]))


def test_the_console_table_takes_a_test_id_literally() -> None:
    assert "test_training[bold]" in console_text([PLAIN_TEST], 200)


def test_a_peak_at_the_limit_is_within_it() -> None:
    assert PLAIN_TEST.headroom_bytes == 0
    assert "over limit" not in console_text([PLAIN_TEST], 120)
    assert "over limit" in console_text([replace(PLAIN_TEST, limit_bytes=4_000_255)], 120)
