"""The OpenMP preload: set where it helps, and never against the user's own choice."""

import sys
from pathlib import Path

import pytest

from vllm_plugin import openmp


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with libiomp5 on Linux."""
    (tmp_path / "lib").mkdir()
    path = tmp_path / "lib" / "libiomp5.so"
    path.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    return path


def test_the_library_is_found(library: Path) -> None:
    assert openmp.library() == library


def test_it_is_preloaded(library: Path) -> None:
    given = {"PATH": "/bin"}
    assert openmp.preload_environment(given) == {"PATH": "/bin", "LD_PRELOAD": str(library)}
    assert given == {"PATH": "/bin"}


def test_it_stands_before_what_is_preloaded_already(library: Path) -> None:
    given = {"LD_PRELOAD": "/lib/libtcmalloc.so"}
    assert openmp.preload_environment(given)["LD_PRELOAD"] == f"{library}:/lib/libtcmalloc.so"


@pytest.mark.parametrize("name", ["libomp.so", "libgomp.so.1", "libiomp5.so"])
def test_a_chosen_openmp_stays(name: str, library: Path) -> None:
    given = {"LD_PRELOAD": f"/opt/{name}"}
    assert openmp.preload_environment(given) == given


def test_once_is_enough(library: Path) -> None:
    once = openmp.preload_environment({})
    assert openmp.preload_environment(once) == once


def test_nothing_changes_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert openmp.library() is None
    assert openmp.preload_environment({"A": "b"}) == {"A": "b"}


def test_nothing_changes_where_there_is_no_preload(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert openmp.preload_environment({}) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
def test_the_locked_environment_has_the_library() -> None:
    """requirements/cpu.txt brings intel-openmp; without it every speed measured here is wrong."""
    assert openmp.library() is not None
