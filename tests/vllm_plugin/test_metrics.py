"""What engine processes count and report, and how the page of another process shows it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_plugin import metrics
from vllm_plugin.metric_families import COUNTERS, DECILES, GAUGES, LENGTHS
from vllm_plugin.metrics_page import totals

DOCS = Path(__file__).parents[2] / "docs"

ENGINE = """
from vllm_plugin import metrics
for reason in {reasons!r}:
    metrics.count("requests_without_drafts", reason)  # unsaid, as vLLM's logger is slow to import
"""
PAGE = """
import multiprocessing, sys
from prometheus_client import generate_latest
from vllm_plugin import metrics

def page():
    metrics.prepare()
    metrics.prepare()
    print(generate_latest().decode(), flush=True)

if sys.argv[1:] == ["child"]:  # as a process of the server is started
    process = multiprocessing.get_context("fork").Process(target=page)
    process.start()
    process.join()
else:
    page()
"""
MULTIPROCESS_PAGE = """
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""
REPORT = """
import os, sys
from pathlib import Path
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, multiprocess
from vllm_plugin import metrics, metrics_page

counters = {"emitted_tokens": {"": 3}, "length_seconds": {"on": 0.25, "trial": 0}}
metrics.report(counters, {"length_threshold": 0.5}, {0: 2, 3: 1})
metrics.report(counters, {"length_threshold": 0.125, "achieved_speedup": 1.5}, {5: 4, 200: 1})
if sys.argv[1:] == ["fork"]:
    if os.fork() == 0:
        metrics.report({"emitted_tokens": {"": 1}}, {"length_threshold": 9}, {5: 1})
        os._exit("achieved_speedup" in metrics._gauges)  # that is the parent's
    assert os.wait()[1] == 0
registry = CollectorRegistry()
if metrics.FOLDER in os.environ:
    metrics_page.show(Path(os.environ[metrics.FOLDER]))
    registry = REGISTRY
else:
    multiprocess.MultiProcessCollector(registry)
print(os.getpid())
print(generate_latest(registry).decode())
"""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """This process has counted nothing yet; the folder that it counts into."""
    monkeypatch.setattr(metrics, "_counts", {name: {} for name in COUNTERS})
    monkeypatch.setattr(metrics, "_gauges", {})
    monkeypatch.setattr(metrics, "_lengths", {})
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    return tmp_path


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged."""
    lines: list[str] = []

    class Log:
        def warning(self, text: str, *values: object) -> None:
            lines.append(text % values)

    monkeypatch.setattr(metrics, "log", Log)
    return lines


def run(code: str, *arguments: str, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != metrics.FOLDER} | variables
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_engines_of_one_server_are_added_up(tmp_path: Path) -> None:
    folder = {metrics.FOLDER: str(tmp_path)}
    run(ENGINE.format(reasons=["x", "x", "y"]), **folder)
    run(ENGINE.format(reasons=["x"]), **folder)
    assert totals(tmp_path).counters["requests_without_drafts"] == {"x": 3, "y": 1}
    page = run(PAGE, "child", **folder)
    assert 'specproof:requests_without_drafts_total{reason="x"} 3.0' in page
    assert 'specproof:requests_without_drafts_total{reason="y"} 1.0' in page
    assert "# HELP specproof:rows_without_law_total" in page


def test_a_server_started_by_a_counting_process_counts_for_itself(tmp_path: Path) -> None:
    folder = {metrics.FOLDER: str(tmp_path)}
    run(ENGINE.format(reasons=["x"]), **folder)
    assert "specproof:requests_without_drafts_total{" not in run(PAGE, **folder)


def test_with_several_api_servers_prometheus_carries_the_counts(tmp_path: Path) -> None:
    folder = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    run(ENGINE.format(reasons=["x", "x"]), **folder)
    assert 'specproof:requests_without_drafts_total{reason="x"} 2.0' in run(
        MULTIPROCESS_PAGE, **folder
    )


def test_a_page_without_counts_is_no_error(tmp_path: Path) -> None:
    assert "specproof:requests_without_drafts_total{" not in run(PAGE)
    assert totals(tmp_path / "gone").counters["rows_without_law"] == {}


def test_each_label_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, engine: Path, said: list[str]
) -> None:
    monkeypatch.setenv(metrics.FOLDER, str(engine / "gone"))  # the server has ended: no error
    for label in ("a", "b", "a"):
        metrics.count("requests_without_drafts", label, f"{label} stands against it")
    assert [text.split(" (")[0] for text in said] == [
        "specproof: a stands against it",
        "specproof: b stands against it",
    ]


def samples(page: str) -> dict[tuple[str, ...], float]:
    """The plugin's samples, by name and label values."""
    return {
        (sample.name.removeprefix("specproof:"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("specproof:")
    }


@pytest.mark.parametrize("mode", [metrics.FOLDER, metrics.PROMETHEUS_FOLDER])
def test_reports_add_up_over_engines_and_gauges_of_ended_ones_go(tmp_path: Path, mode: str) -> None:
    run(REPORT, "fork", **{mode: str(tmp_path)})
    pid, _, page = run(REPORT, **{mode: str(tmp_path)}).partition("\n")
    bounds = ["0.0", "1.0", "2.0", "3.0", "4.0", "6.0"]
    bounds += ["8.0", "12.0", "16.0", "32.0", "64.0", "128.0", "+Inf"]
    below = [4, 4, 4, 6, 6, 15, 15, 15, 15, 15, 15, 15, 17]
    assert samples(page) == {
        ("emitted_tokens_total",): 13,
        ("length_seconds_total", "on"): 1,
        ("length_seconds_total", "trial"): 0,
        ("length_threshold", pid): 0.125,
        ("achieved_speedup", pid): 1.5,
        **{("draft_length_bucket", b): n for b, n in zip(bounds, below, strict=True)},
        ("draft_length_count",): 17,
        ("draft_length_sum",): 2 * (3 + 4 * 5 + 200) + 5,
    }


def test_a_process_id_that_comes_again_takes_nothing_from_the_one_before(
    monkeypatch: pytest.MonkeyPatch, engine: Path
) -> None:
    metrics.report({"emitted_tokens": {"": 2}}, {"length_threshold": 0.5}, {})
    monkeypatch.setattr(metrics, "_born", metrics._born + 1)
    monkeypatch.setattr(metrics, "_counts", {name: {} for name in COUNTERS})
    metrics.report({"emitted_tokens": {"": 3}}, {"length_threshold": 0.25}, {})
    assert totals(engine).counters["emitted_tokens"] == {"": 5}
    assert totals(engine).gauges["length_threshold"] == {str(os.getpid()): 0.25}


def test_a_reader_sees_the_last_whole_report_and_a_full_disk_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, engine: Path, said: list[str]
) -> None:
    metrics.report({"draft_tokens": {"wasted": 2}}, {}, {1: 1})
    before, seen = totals(engine), []
    write = Path.write_text

    def half(self: Path, text: str) -> None:
        write(self, text[: len(text) // 2])
        seen.append(totals(engine))
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        for _ in range(2):
            metrics.report({"draft_tokens": {"wasted": 3}}, {}, {1: 1})
    assert seen == [before, before]
    assert said == ["specproof: counts are not written for /metrics: no space left"]
    metrics.count("draft_tokens", "wasted")
    assert totals(engine).counters["draft_tokens"] == {"wasted": 9}
    assert totals(engine).lengths == {1: 3}


@pytest.mark.parametrize(
    ("report", "complaint"),
    [
        (({"emitted": {"": 1}}, {}, {}), "no counter is named 'emitted'; there are requests_"),
        (({}, {"emitted_tokens": 1}, {}), "no gauge is named 'emitted_tokens'; there are length_"),
        (({"draft_tokens": {"lost": 1}}, {}, {}), "'lost' is no fate of draft_tokens; there are"),
        (({"emitted_tokens": {"text": 1}}, {}, {}), "'text' is no label of emitted_tokens"),
        (({"emitted_tokens": {"": -1}}, {}, {}), "emitted_tokens cannot grow by -1"),
        (({"length_seconds": {"on": float("nan")}}, {}, {}), "length_seconds cannot grow by nan"),
        (({}, {}, {-1: 1}), "lengths has -1: 1"),
        (({}, {}, {1: -1}), "lengths has 1: -1"),
    ],
)
def test_a_report_that_is_refused_adds_nothing(engine: Path, report: Any, complaint: str) -> None:
    counters, gauges, lengths = report
    good = {"draft_tokens": {"accepted": 1}}
    with pytest.raises(ValueError, match=f"^{complaint}"):
        metrics.report(good | counters, {"length_threshold": 1} | gauges, {2: 1} | lengths)
    assert list(engine.iterdir()) == []
    metrics.report({}, {}, {})
    empty: dict[str, dict[str, float]] = {name: {} for name in COUNTERS}
    assert totals(engine) == (empty, {name: {} for name in GAUGES}, {})


def test_docs_list_every_family_and_its_label_values() -> None:
    text = (DOCS / "metrics.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    reasons = {"reason", *COUNTERS["length_stops"].values}
    assert set(rows) == {*(f"{name}_total" for name in COUNTERS), *GAUGES, LENGTHS, *reasons}
    for name, family in COUNTERS.items():
        row = rows[f"{name}_total"]
        assert (f"`{family.label}`" if family.label else "| |") in row
        if family.values not in (DECILES, COUNTERS["length_stops"].values):
            assert all(f"`{value}`" in row for value in family.values)
