"""Several paths on other attention: a sliding window, and several query heads for each key."""

from pathlib import Path
from typing import Any

from tests.engine import scripted_paths, tiny
from tests.engine.engines import STAND, counters, engine
from vllm_plugin.local_engine import runner_of

WINDOW = 32


def _layers(worker: Any) -> tuple[str, int, int, int]:
    runner = runner_of(worker)
    spec = runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    layer = next(iter(runner.compilation_config.static_forward_context.values()))
    return (
        type(spec).__name__,
        getattr(spec, "sliding_window", 0),
        spec.num_kv_heads,
        (layer.num_heads),
    )


def test_a_sliding_window_over_shared_keys_equals_plain_greedy(tmp_path: Path) -> None:
    from vllm import SamplingParams

    model = tiny.build(tmp_path / "tiny", sharpness=2.2, heads=4, window=WINDOW)
    greedy = SamplingParams(temperature=0, max_tokens=220, ignore_eos=True, detokenize=False)
    prompts = [[(11 * i + j * j) % 60 + 3 for j in range(4 + 9 * i)] for i in range(8)]
    options = {"candidates": 4, "order": 2, "table_mib": 1}
    with engine(
        model,
        proposer=STAND,
        draft_length=8,
        options=options,
        skip_tokenizer_init=True,
        block_size=32,
    ) as llm:

        def generate() -> list[list[int]]:
            asked = [{"prompt_token_ids": p} for p in prompts]
            outputs = llm.generate(asked, greedy, use_tqdm=False)
            return [list(o.outputs[0].token_ids) for o in outputs]

        assert llm.collective_rpc(_layers) == [("SlidingWindowSpec", WINDOW, 2, 4)]
        llm.collective_rpc(scripted_paths.draft_nothing)
        plain = generate()
        assert counters(llm)["num_draft_tokens"] == 0
        texts = [p + text for p, text in zip(prompts, plain, strict=True)]
        script = (texts, [2, 4], [4, 8], 64)
        llm.collective_rpc(scripted_paths.follow_script, args=script)
        assert generate() == plain
        seen = llm.collective_rpc(scripted_paths.seen)[0]
        assert min(seen[1], seen[2], seen["two blocks"]) > 10
        llm.collective_rpc(scripted_paths.end_script)
        assert generate() == plain
        llm.collective_rpc(scripted_paths.follow_script, args=script)
        llm.collective_rpc(scripted_paths.break_part, args=("copy-back",))
        assert generate() != plain
