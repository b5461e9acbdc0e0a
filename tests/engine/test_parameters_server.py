"""A real server: parameters that vLLM refuses under speculation are served, and /metrics says how.

A processor that changes nothing turns drafts off for a request, so the server is its own reference.
"""

import json
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


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[ServerProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        options = ServerOptions(
            model=str(smollm2),
            speculative_config=plugin_speculation(4),
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
            *(v for k, v in sample.labels.items() if k in ("reason", "kind")),
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
