"""A real server: parameters that vLLM refuses under speculation are served, and /metrics says how.

A processor that changes nothing turns drafts off for a request, so the server is its own reference.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_plugin.server import ServerOptions, ServerProcess, plugin_speculation, vllm_server

pytestmark = [pytest.mark.engine, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "size": {"enum": ["small", "large"]},
        "people": {"type": "integer", "minimum": 0, "maximum": 99999999},
    },
    "required": ["city", "size", "people"],
    "additionalProperties": False,
}
QUESTION = "Name a city, say whether it is small or large, and how many people live there."
KINDS: dict[str, dict[str, Any]] = {
    "json": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": SCHEMA},
        }
    },
    "regex": {"structured_outputs": {"regex": "(small|large) [A-Z][a-z]{2,12}"}},
    "choice": {"structured_outputs": {"choice": ["small", "large", "largest of all"]}},
    "bias": {"logit_bias": {"28": 2.0}, "min_p": 0.1, "presence_penalty": 0.4},
    "stop": {"stop": ["people", "city"], "logprobs": True, "top_logprobs": 2},
}
COMPACT = {"backend": "xgrammar", "disable_any_whitespace": True}
UNDRAFTED = {"vllm_xargs": {"force_every": 0}}
DRAFTS = 4
STOPPED = sum("stop" in settings for settings in KINDS.values())  # with drafts, by the first test
# Every draft is verified, which steps' times have no part in, and predicted all the same.
ALWAYS = {"specproof": {"h": 1.0}}


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[ServerProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        options = ServerOptions(
            model=str(smollm2),
            speculative_config=plugin_speculation(DRAFTS),
            additional_config=ALWAYS,
            max_model_len=512,
            dtype="float32",
            extra=(
                *("--logits-processors", "tests.engine.processors:ByRequest"),
                *("--structured-outputs-config", json.dumps(COMPACT)),
            ),
        )
        with vllm_server(options) as running:
            yield running


def answer(server: ServerProcess, **settings: Any) -> dict[str, Any]:
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 80,
        "temperature": 0,
        **settings,
    }
    reply = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=120, trust_env=False)
    assert reply.status_code == httpx.codes.OK, reply.text
    return dict(reply.json()["choices"][0])


def metrics(server: ServerProcess) -> dict[tuple[str, ...], float]:
    page = httpx.get(server.url + "/metrics", timeout=10, trust_env=False).text
    return {
        (
            sample.name,
            *(v for k, v in sample.labels.items() if k in ("reason", "kind", "fate", "predicted")),
        ): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


DRAFTED = ("vllm:spec_decode_num_draft_tokens_total",)
COUNTED = ("specproof:requests_without_drafts_total", "custom_logits_processor")


def test_answers_with_drafts_are_those_without_and_the_page_counts_both(
    server: ServerProcess,
) -> None:
    before = metrics(server)
    assert COUNTED not in before
    for n, (kind, settings) in enumerate(KINDS.items(), start=1):
        plain = answer(server, **settings, **UNDRAFTED)
        after_plain = metrics(server)
        assert after_plain[COUNTED] == n
        drafted = answer(server, **settings)
        after_drafted = metrics(server)
        assert after_drafted[COUNTED] == n
        assert after_drafted[DRAFTED] > after_plain[DRAFTED] == before[DRAFTED], kind
        before = after_drafted
        assert drafted["message"]["content"] == plain["message"]["content"], kind
        assert drafted["finish_reason"] == plain["finish_reason"]
        if kind == "stop":
            ours, theirs = (
                [entry["token"] for entry in choice["logprobs"]["content"]]
                for choice in (drafted, plain)
            )
            assert ours == theirs
    whole = json.loads(answer(server, **KINDS["json"])["message"]["content"])
    assert set(whole) == {"city", "size", "people"}


def test_a_request_may_ask_for_fewer_drafts(server: ServerProcess) -> None:
    plain = answer(server, vllm_xargs={"specproof_max_draft": 0})
    before = metrics(server)
    assert answer(server, vllm_xargs={"specproof_max_draft": 0})["message"] == plain["message"]
    between = metrics(server)
    assert between[DRAFTED] == before[DRAFTED]
    own = {"specproof_max_draft": 2, "specproof_group": "tenant"}
    assert answer(server, vllm_xargs=own)["message"] == plain["message"]
    after = metrics(server)
    drafts = ("vllm:spec_decode_num_drafts_total",)
    assert 0 < after[DRAFTED] - between[DRAFTED] <= 2 * (after[drafts] - between[drafts])


@pytest.mark.parametrize(
    ("xargs", "words"),
    [
        (
            {"specproof_max_draft": -1},
            "specproof_max_draft is -1, but must be a whole number from 0",
        ),
        ({"specproof_group": 7}, "specproof_group is 7, but must be a text"),
        ({"specproof_groups": "a"}, "'specproof_groups' is no argument of specproof"),
    ],
)
def test_a_request_that_asks_wrongly_is_told_so(
    server: ServerProcess, xargs: dict[str, Any], words: str
) -> None:
    body = {"model": "model", "prompt": "a", "max_tokens": 2, "vllm_xargs": xargs}
    reply = httpx.post(server.url + "/v1/completions", json=body, timeout=60, trust_env=False)
    assert reply.status_code == httpx.codes.BAD_REQUEST
    assert words in reply.json()["error"]["message"]
    assert answer(server, max_tokens=3)["finish_reason"] == "length"


def fates_of(page: dict[tuple[str, ...], float]) -> float:
    """Drafts whose end is on the page."""
    names = (("specproof:draft_tokens_total", fate) for fate in ("accepted", "wasted"))
    return sum(page.get(name, 0.0) for name in names)


def test_the_page_shows_what_was_decided(server: ServerProcess) -> None:
    settled = time.monotonic() + 60
    page = metrics(server)
    while fates_of(page) < page[DRAFTED] and time.monotonic() < settled:
        time.sleep(0.5)  # reports go out once a second
        page = metrics(server)
    emitted = page[("specproof:emitted_tokens_total",)]
    steps = page[("specproof:draft_length_count",)]
    assert 0 < steps < emitted
    assert page[("specproof:draft_tokens_total", "accepted")] > 0
    # A request that met its stop string may have verified drafts once more, which vLLM leaves out.
    assert 0 <= fates_of(page) - page[DRAFTED] <= DRAFTS * STOPPED
    assert sum(v for k, v in page.items() if k[0] == "specproof:length_stops_total") == steps
    judged = sum(v for k, v in page.items() if k[0] == "specproof:judged_drafts_total")
    assert 0 < judged <= fates_of(page)
