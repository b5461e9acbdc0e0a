"""What the first engine of either test process would wait for, made once: kernels and a model.

    python -m tests.prepare

``make test`` runs it beside mypy, which leaves a core free. No test depends on it.
"""

from types import SimpleNamespace

import vllm_plugin
from proposers.path_stand import StandPathDrafter
from vllm_plugin import models
from vllm_plugin.config import Options
from vllm_plugin.length_settings import make_control
from vllm_plugin.warm_up import warm_up, warm_up_lengths

K = 4


def main() -> None:
    """Build SmolLM2, and compile for chains and for paths as an engine that starts does."""
    models.build("smollm2")
    options = Options.model_validate({"table_mib": 1})
    stand = vllm_plugin.Stand.make_drafter(SimpleNamespace(), options, K, 0)
    paths = StandPathDrafter(stand.table, draft_length=K, candidates=2, drafting="iid")
    for drafter, trees in ((stand, False), (paths, True)):
        warm_up(drafter)
        warm_up_lengths(make_control(options, K, trees=trees, hardware=""), drafter)


if __name__ == "__main__":
    main()
