"""The keeper of a table: when it saves, what it says, and what it survives."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from proposers import ChooserDrafter, PromptLookupDrafter, StandDrafter, StandTable, table_file
from proposers.table_file import Identity, TableReader
from tests.proposers.batches import verified
from vllm_plugin import metrics, table_keeper
from vllm_plugin.config import ConfigurationError, Options
from vllm_plugin.table_keeper import TableKeeper

IDENTITY = Identity(order=2, entries=4, vocabulary=64, tokenizer="")


class Log:
    """A logger that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str, *values: object) -> None:
        self.lines.append(text % values)

    warning = info


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    log = Log()
    monkeypatch.setattr(metrics, "log", lambda: log)
    monkeypatch.setattr(metrics, "_counts", {name: {} for name in metrics.COUNTERS})
    monkeypatch.delenv(metrics.FOLDER, raising=False)
    return log.lines


def table() -> StandTable:
    return StandTable(order=2, entries=4, budget_bytes=1 << 14)


def keeper(path: Path, minutes: float = 0) -> TableKeeper:
    return TableKeeper(table(), path, IDENTITY, minutes=minutes)


def teach(kept: TableKeeper, token: int = 5) -> None:
    kept.table.observe(verified([[token]], [{1: 0.5, 2: 0.5}]))


def saves() -> dict[str, int]:
    return dict(metrics._counts["table_saves"])


def test_cold_then_saved_at_the_end_then_warm(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "t"
    cold = keeper(path)
    assert "cold start" in said[-1]
    teach(cold)
    cold.close()
    cold.close()
    assert saves() == {"saved": 1}
    warm = keeper(path)
    assert "warm start with 1 of 1 contexts" in said[-1]
    assert warm.table.live == 1
    warm.close()
    assert saves() == {"saved": 1}  # it learned nothing


def test_without_anything_learned_no_file_appears(tmp_path: Path) -> None:
    keeper(tmp_path / "t").close()
    assert list(tmp_path.iterdir()) == []


def test_saved_now_and_then_but_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "t"
    kept = keeper(path, minutes=0.02 / 60)
    try:
        for token in (5, 6):
            teach(kept, token)
            until = time.monotonic() + 10
            while not path.exists() or table_file.check(path, IDENTITY) < token - 4:
                assert time.monotonic() < until
                time.sleep(0.005)
        until = time.monotonic() + 10
        # One that caught the teaching in the middle is followed by another, and counted after it.
        while saves().get("saved", 0) < 2 or kept._saved != kept._ticks():
            assert time.monotonic() < until
            time.sleep(0.005)
        time.sleep(0.2)
        number = saves()["saved"]
        time.sleep(0.2)
        assert saves() == {"saved": number}
        assert 2 <= number <= 4
    finally:
        kept.close()
    assert kept._thread is not None
    kept._thread.join(5)
    assert not kept._thread.is_alive()


def test_a_save_that_fails_is_said_and_counted_and_serving_goes_on(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keeper(tmp_path / "t")
    teach(kept)

    def full(*values: object, **settings: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(table_keeper, "save", full)
        assert kept.save() is False
    assert "not saved" in said[-1] and "No space left" in said[-1]
    assert saves() == {"failed": 1}
    assert kept.save() is True  # what was not saved is still new
    assert table_file.check(tmp_path / "t", IDENTITY) == 1


def test_another_writer_is_waited_for_at_the_end_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t"
    kept = keeper(path)
    teach(kept)
    with FileLock(f"{path}.lock"):
        assert kept.save() is False
        monkeypatch.setattr(table_keeper, "_LAST_PATIENCE", 0.1)
        kept.close()
    assert saves() == {"failed": 2}
    assert not path.exists()
    later = keeper(path)
    teach(later)
    lock = FileLock(f"{path}.lock", thread_local=False)
    lock.acquire()
    timer = threading.Timer(0.2, lock.release)
    timer.start()
    monkeypatch.setattr(table_keeper, "_LAST_PATIENCE", 10.0)
    later.close()
    timer.join()
    assert table_file.check(path, IDENTITY) == 1


def test_a_file_that_spoiled_since_it_was_checked(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"something else")
    with pytest.raises(ConfigurationError, match=r"refuses to start: .*no table of specproof"):
        keeper(path)


# Where vLLM ends


def test_the_runner_saves_before_it_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "t"
    kept = keeper(path)
    teach(kept)
    order: list[bool] = []
    shutdown = table_keeper._saving_first(lambda runner: order.append(path.exists()))
    shutdown(SimpleNamespace(drafter=SimpleNamespace(keeper=kept)))
    assert order == [True]
    shutdown(SimpleNamespace(drafter=SimpleNamespace(keeper=None)))  # without a table_path
    shutdown(SimpleNamespace())  # a runner without drafts
    assert order == [True] * 3


def test_the_engine_core_saves_when_its_loop_ends_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "t"
    kept = keeper(path)
    teach(kept)
    handle = table_keeper._saving_before_the_end(lambda core: core.goes_on)
    assert handle(SimpleNamespace(goes_on=True)) is True
    assert not path.exists()
    assert handle(SimpleNamespace(goes_on=False)) is False
    assert path.exists()


@pytest.mark.parametrize("chooses", [False, True])
def test_the_table_of_a_drafter_or_of_a_member_is_kept(
    tmp_path: Path, chooses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_keeper.hooks, "install", lambda hook, make: None)
    path = tmp_path / "t"
    drafter: Any = StandDrafter(table(), draft_length=2)
    if chooses:
        members = {"prompt_lookup": PromptLookupDrafter(draft_length=2), "stand": drafter}
        chooser = ChooserDrafter(members, draft_length=2)
    model = SimpleNamespace(skip_tokenizer_init=True, get_vocab_size=lambda: 64, model="m")
    kept = table_keeper.keep(
        chooser if chooses else drafter,
        Options(table_path=str(path), table_save_minutes=0, order=2, entries=4),
        SimpleNamespace(model_config=model),
    )
    assert kept is not None
    assert kept.table is drafter.table
    teach(kept)
    kept.close()
    with TableReader(path, IDENTITY) as reader:
        assert reader.about["model"] == "m"


def test_a_drafter_without_a_table_has_no_keeper(tmp_path: Path) -> None:
    config: Any = None
    assert table_keeper.keep(object(), Options(), config) is None
    with pytest.raises(ConfigurationError, match="keeps no STAND table"):
        table_keeper.keep(object(), Options(table_path=str(tmp_path / "t")), config)
