"""Counts made in engine processes and shown on the page of another process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_plugin import metrics

ENGINE = """
from vllm_plugin import metrics
for reason in {reasons!r}:
    metrics.count("requests_without_drafts", reason, "because")
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
    assert metrics.totals(tmp_path)["requests_without_drafts"] == {"x": 3, "y": 1}
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
    assert metrics.totals(tmp_path / "gone")["rows_without_law"] == {}


def test_each_label_is_logged_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []

    class Log:
        def warning(self, text: str, *values: object) -> None:
            said.append(text % values)

    monkeypatch.setattr(metrics, "log", Log)
    monkeypatch.setattr(metrics, "_counts", {name: {} for name in metrics.COUNTERS})
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path / "gone"))  # the server has ended: no error
    for label in ("a", "b", "a"):
        metrics.count("requests_without_drafts", label, f"{label} stands against it")
    assert [text.split(" (")[0] for text in said] == [
        "specproof: a stands against it",
        "specproof: b stands against it",
    ]
