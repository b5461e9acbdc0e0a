"""The counters are read, summed over engines, subtracted, and turned into block efficiency."""

import pytest

from vllm_plugin.scrape import Counters, ScrapeError, parse

PAGE = """
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 100.0
vllm:generation_tokens_total{engine="1",model_name="m"} 10.0
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 10.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 10.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 0.5
# HELP vllm:inter_token_latency_seconds Histogram of inter-token latency in seconds.
# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf",model_name="m"} 50.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 50.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 1.5
# HELP vllm:iteration_tokens_total Histogram of number of tokens per engine_step.
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="+Inf",model_name="m"} 60.0
vllm:iteration_tokens_total_count{engine="0",model_name="m"} 60.0
vllm:iteration_tokens_total_sum{engine="0",model_name="m"} 600.0
"""
SPECULATION = """
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 40.0
# HELP vllm:spec_decode_num_draft_tokens_total Number of draft tokens.
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 200.0
# HELP vllm:spec_decode_num_accepted_tokens_total Number of accepted tokens.
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 52.0
# HELP vllm:spec_decode_num_accepted_tokens_per_pos_total Accepted tokens per draft position.
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 12.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 30.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="10"} 10.0
"""


def test_a_page_without_speculation() -> None:
    counters = parse(PAGE)
    assert counters.generation_tokens == 110  # both engines
    assert (counters.first_tokens, counters.decode_steps, counters.engine_steps) == (10, 50, 60)
    assert counters.block_efficiency == pytest.approx(2.0)
    assert counters.acceptance_rate is None
    assert counters.accepted_per_position == ()


def test_a_page_with_speculation_sorts_positions_as_numbers() -> None:
    counters = parse(PAGE + SPECULATION)
    assert counters.accepted_per_position == (30, 12, *(0,) * 8, 10)
    assert counters.acceptance_rate == pytest.approx(52 / 200)
    assert counters.acceptance_by_position[:2] == pytest.approx((30 / 40, 12 / 40))


def test_steps_without_a_draft_count_in_block_efficiency() -> None:
    # 10 requests, 50 decode steps, 40 of them with a draft, 52 accepted, 2 cut off at the end.
    counters = parse(PAGE + SPECULATION)
    tokens_if_every_step_had_a_draft = 1 + counters.accepted_tokens / counters.drafts
    assert counters.block_efficiency is not None
    assert counters.block_efficiency < tokens_if_every_step_had_a_draft


def test_subtraction_and_addition_undo_each_other() -> None:
    before, after = parse(PAGE), parse(PAGE + SPECULATION)
    work = after - before
    assert work.generation_tokens == 0 and work.drafts == 40
    assert work.accepted_per_position == after.accepted_per_position
    assert work + before == after
    assert work.block_efficiency is None


def test_nothing_happened() -> None:
    nothing = Counters() - Counters()
    assert nothing == Counters()
    assert nothing.block_efficiency is None and nothing.acceptance_by_position == ()


def test_a_page_of_something_else_is_refused() -> None:
    with pytest.raises(ScrapeError, match="lacks vllm:generation_tokens_total"):
        parse("# TYPE up gauge\nup 1\n")
