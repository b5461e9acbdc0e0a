"""Options under ``specproof``: each mistake is answered with one sentence that names it."""

from typing import Any, get_args

import pytest

from proposers import table
from proposers.replay.drafters import MEMBERS
from vllm_plugin.backends import CHAIN_RULES
from vllm_plugin.config import (
    MAX_DRAFT_LENGTH,
    MAX_EMITTED_WEIGHT,
    MAX_ENTRIES,
    MAX_ORDER,
    ConfigurationError,
    Member,
    Options,
    read_options,
)


def sentence(section: Any) -> str:
    with pytest.raises(ConfigurationError) as refusal:
        read_options({"specproof": section})
    text = str(refusal.value)
    assert "\n" not in text
    assert text.startswith("--additional-config: ")
    return text


@pytest.mark.parametrize("config", [None, {}, {"specproof": {}}, {"another_plugin": {"order": 99}}])
def test_defaults(config: object) -> None:
    assert read_options(config) == Options()


def test_what_is_given_is_taken() -> None:
    given = {"rule": "token", "order": 6, "decay": 1, "count_cap": 3.5, "prompt_visits": False}
    options = read_options({"specproof": given})
    assert {name: getattr(options, name) for name in given} == given


def test_members_are_known_and_named_once() -> None:
    assert read_options({"specproof": {"members": ["aded"]}}).members == ["aded"]
    assert "specproof.members is []" in sentence({"members": []})
    assert "'sam'" in sentence({"members": ["stand", "sam"]})
    assert "once" in sentence({"members": ["stand", "stand"]})
    assert get_args(Member) == tuple(MEMBERS)


def test_limits_repeated_here_are_those_of_their_owners() -> None:
    """config.py must not import numba (its comment says why), so it repeats the table's limits."""
    from vllm.v1.sample.rejection_sampler import MAX_SPEC_LEN

    assert MAX_ORDER == table.MAX_ORDER
    assert MAX_ENTRIES == table.MAX_ENTRIES
    assert MAX_EMITTED_WEIGHT == table.MAX_EMITTED_WEIGHT
    assert MAX_DRAFT_LENGTH == MAX_SPEC_LEN


def test_an_unknown_key_is_named_beside_the_known_ones() -> None:
    text = sentence({"odrer": 3})
    assert "no option 'odrer'" in text
    assert all(name in text for name in Options.model_fields)


BOUNDS = [
    ("order", 1, MAX_ORDER, 1),
    ("entries", 1, MAX_ENTRIES, 1),
    ("table_mib", 1, 2**20, 1),
    ("decay", 1e-9, 1, 1e-9),
    ("emitted_weight", 0, MAX_EMITTED_WEIGHT, 1),
    ("longest_match", 1, 64, 1),
    ("shortest_match", 1, 4, 1),  # the default of longest_match
    ("suffix_max_tree_depth", 1, 4096, 1),
    ("suffix_max_spec_factor", 0, 4096, 1),
    ("suffix_min_token_prob", 0, 1, 1e-9),
    ("suffix_max_cached_requests", 0, 2**31 - 1, 1),
    ("search_rounds", 1, 4096, 1),
    ("exploration", 0, 100, 1),
]


@pytest.mark.parametrize(("key", "low", "high", "step"), BOUNDS)
def test_bounds_are_inclusive_and_kept(key: str, low: float, high: float, step: float) -> None:
    for value in (low, high):
        assert getattr(read_options({"specproof": {key: value}}), key) == value
    for value in (low - step, high + (step if step == 1 else 0.5)):
        text = sentence({key: value})
        assert f"specproof.{key} is {value!r}" in text


@pytest.mark.parametrize("key", ["count_cap", "emitted_weight", "interpolation"])
@pytest.mark.parametrize("value", [-1, -1e-9, float("nan")])
def test_weights_and_caps_are_not_negative(key: str, value: float) -> None:
    assert f"specproof.{key} is" in sentence({key: value})
    assert getattr(read_options({"specproof": {key: 0}}), key) == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rule", "blocks"),
        ("rule", 1),
        ("order", "four"),
        ("order", 4.5),
        ("order", None),
        ("order", [4]),
        ("table_mib", {}),
        ("decay", "much"),
        ("decay", float("nan")),
        ("prompt_visits", "perhaps"),
    ],
)
def test_wrong_types_are_named(key: str, value: object) -> None:
    text = sentence({key: value})
    assert f"specproof.{key} is {value!r}, but " in text


def test_a_wrong_rule_is_answered_with_the_rules() -> None:
    text = sentence({"rule": "best"})
    assert all(f"'{rule}'" in text for rule in CHAIN_RULES)


@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_every_chain_rule_can_be_asked_for(rule: str) -> None:
    assert read_options({"specproof": {"rule": rule}}).rule == rule


@pytest.mark.parametrize("section", [4, "order=4", ["order"], None, True])
def test_a_section_that_is_no_object_is_refused(section: object) -> None:
    text = sentence(section)
    assert "must hold an object" in text
    assert repr(section) in text


def test_the_shortest_match_does_not_exceed_the_longest() -> None:
    text = sentence({"shortest_match": 5, "longest_match": 3})
    assert "shortest_match is 5" in text
    assert "longest_match, which is 3" in text


def test_options_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Options().order = 5


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"length": "fixed", "h": 0.5}, "h is 0.5, which has no effect with length 'fixed'"),
        ({"length": "fixed", "step_times_path": "x"}, "step_times_path is 'x', which has no"),
        ({"h": 0.5, "step_times_path": "x"}, "step_times_path has no effect with h"),
        ({"h": 0}, "h is 0, but input should be greater than 0"),
        ({"h": 1.5}, "h is 1.5, but"),
        ({"length": "mdp"}, "length is 'mdp', but input should be 'threshold' or 'fixed'"),
    ],
)
def test_settings_of_the_draft_length(section: Any, words: str) -> None:
    assert words in sentence(section)
