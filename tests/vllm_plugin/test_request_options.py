"""What a request may ask of us, and the sentence for one that asks wrongly."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from proposers.replay.drafters import DRAFTERS, make_drafter
from vllm_plugin import let_through, request_options
from vllm_plugin.config import ConfigurationError, Options
from vllm_plugin.request_options import GROUP, MAX_DRAFT, NO_LIMIT, RequestOptions, read
from vllm_plugin.served import ServedRequests


@pytest.mark.parametrize("given", [None, {}, {"kv_transfer_params": {}, "session_id": "x"}])
def test_who_asks_for_nothing_gets_the_defaults(given: Any) -> None:
    assert read(given) == RequestOptions(NO_LIMIT, None)


def test_what_is_asked_for_is_read() -> None:
    assert read({MAX_DRAFT: 0, GROUP: "tenant 7", "other": 1}) == RequestOptions(0, "tenant 7")
    assert read({MAX_DRAFT: NO_LIMIT, 7: "a"}) == RequestOptions(NO_LIMIT, None)
    assert read({GROUP: "x" * 256}).group == "x" * 256


@pytest.mark.parametrize("value", [-1, True, 2.0, "3", [1], None, 2**64, "z" * 10**6])
def test_a_limit_that_is_no_whole_number(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="whole number from 0 to") as refused:
        read({MAX_DRAFT: value})
    assert f"{MAX_DRAFT} is {value!r}"[:90] in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("value", ["", 7, None, ["a"], "x" * 257, "y" * 10**6, "\ud800"])
def test_a_group_that_is_no_name(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="1 to 256 characters") as refused:
        read({GROUP: value})
    assert len(str(refused.value)) < 250


def test_a_misspelt_argument_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'specproof_maxdraft' is no argument"):
        read({"specproof_maxdraft": 3})


@pytest.mark.parametrize(
    ("proposer", "members", "keeps"),
    [
        ("Stand", ["stand"], True),
        ("SpecTr", ["stand"], True),
        ("PromptLookup", ["suffix"], True),
        ("Chooser", ["stand", "prompt_lookup"], True),
        ("Chooser", ["stand", "suffix"], False),
        ("Suffix", ["stand"], False),
        ("TokenRecycling", ["stand"], False),
        ("Aded", ["stand"], False),
    ],
)
def test_groups_are_refused_where_nothing_keeps_them(
    proposer: str, members: Any, keeps: bool
) -> None:
    speculative = SimpleNamespace()
    request_options.mark(speculative, proposer, Options(members=members))
    request_options.check({MAX_DRAFT: 1}, speculative)
    if keeps:
        request_options.check({GROUP: "a"}, speculative)
    else:
        with pytest.raises(ConfigurationError, match="learns from all requests alike"):
            request_options.check({GROUP: "a"}, speculative)


@pytest.mark.parametrize(
    ("proposer", "keeps"),
    [("Stand", True), ("PromptLookup", True), ("Chooser", False), ("Suffix", False)],
)
def test_a_configuration_without_the_mark_keeps_no_unsure_group(proposer: str, keeps: bool) -> None:
    unmarked = SimpleNamespace(model=f"vllm_plugin.{proposer}")
    if keeps:
        request_options.check({GROUP: "a"}, unmarked)
    else:
        with pytest.raises(ConfigurationError, match="cannot be kept"):
            request_options.check({GROUP: "a"}, unmarked)


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("members", [["stand", "prompt_lookup"], ["stand", "token_recycling"]])
def test_the_door_knows_what_drafters_say_of_themselves(name: str, members: list[str]) -> None:
    """The names at the door, which builds no drafter, against the drafters' own answer."""
    if name == "suffix":
        pytest.importorskip("arctic_inference")
    options = {"table_mib": 1} | ({"members": members} if name == "chooser" else {})
    drafter = make_drafter(name, options, draft_length=2)()
    door = request_options.no_groups(
        DRAFTERS[name].engine_class.rpartition(".")[2], Options.model_validate({"members": members})
    )
    assert drafter.has_groups == (door is None)


def test_a_client_is_told_by_vllm_s_own_error() -> None:
    let_through.install_in_frontend()
    ours: Any = SimpleNamespace(method="custom_class", model="vllm_plugin.Stand")
    with pytest.raises(VLLMValidationError, match="specproof_max_draft is -1"):
        SamplingParams(extra_args={MAX_DRAFT: -1})._validate_spec_decode(ours)
    SamplingParams(extra_args={MAX_DRAFT: 1})._validate_spec_decode(ours)
    SamplingParams(extra_args={MAX_DRAFT: -1})._validate_spec_decode(None)  # another's server


def state(**settings: Any) -> Any:
    return SimpleNamespace(sampling_params=SamplingParams(**settings))


def test_requests_are_known_by_what_they_asked_for() -> None:
    served = ServedRequests()
    a = state(seed=5, extra_args={MAX_DRAFT: 3})
    b = SimpleNamespace(sampling_params=None)
    served.admit("a", a)
    served.admit("b", b)
    assert (served["a"].limit, served["b"].limit) == (3, NO_LIMIT)
    assert served["a"].noise_key != 0 == served["b"].noise_key
    assert served.handles(["b", "a"]).tolist() == [1, 0]
    assert served.groups(["a", "b"]).size == 0
    assert served.ended({"b": b}) == ["a"]
    assert served.ended({"a": a, "b": b}) == []
    assert served.ended({"a": a, "b": state()}) == ["b"]  # another request has its id


def test_groups_are_numbers_that_differ() -> None:
    served = ServedRequests()
    for request_id, group in (("a", "x"), ("b", "y"), ("c", "x")):
        served.admit(request_id, state(extra_args={GROUP: group}))
    served.admit("d", state())
    a, b, c, d = served.groups(["a", "b", "c", "d"]).tolist()
    assert a == c != b
    assert d == 0 not in (a, b)
    other = ServedRequests()
    other.admit("a", state(extra_args={GROUP: "x"}))
    assert other["a"].group != a  # nobody else can compute it


def test_what_came_past_the_door_is_served_without_drafts() -> None:
    for served, arguments in (
        (ServedRequests(), {MAX_DRAFT: "many"}),
        (ServedRequests(has_groups=False), {GROUP: "x"}),
    ):
        served.admit("a", state(extra_args=arguments))
        assert (served["a"].limit, served["a"].taught) == (0, False)
