"""Parameters that vLLM refuses or drops under every speculation, let through to our proposers.

They are applied by :mod:`vllm_plugin.row_requests`, or the request is served without drafts. What a
request asks of us itself (:mod:`vllm_plugin.request_options`) is checked at the same place.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

from vllm_plugin import hooks, request_options
from vllm_plugin.config import ConfigurationError
from vllm_plugin.guard import PROPOSERS


def install_in_frontend() -> None:
    """Accept ``min_p`` and ``logit_bias`` for our proposers, and refuse wrong arguments to them."""
    if hooks.problem(hooks.VALIDATE) is None:
        hooks.install(hooks.VALIDATE, _validated)


def install_in_runner() -> None:
    """Build every logits processor, custom ones too, although there is a speculative config."""
    hooks.install(hooks.BUILD_PROCESSORS, _built)


def ours(speculative_config: Any) -> bool:
    """Whether a vLLM speculative configuration names one of our proposers."""
    return (
        speculative_config is not None
        and speculative_config.method == "custom_class"
        and speculative_config.model in PROPOSERS
    )


def _validated(stock: Any) -> Any:
    @functools.wraps(stock)
    def _validate_spec_decode(self: Any, speculative_config: Any) -> None:
        if not ours(speculative_config):
            stock(self, speculative_config)
            return
        try:
            request_options.check(self.extra_args, speculative_config)
        except ConfigurationError as error:
            from vllm.exceptions import VLLMValidationError

            # A client gets it as an answer of status 400.
            raise VLLMValidationError(str(error), parameter="extra_args") from None

    return _validate_spec_decode


def _built(stock: Any) -> Any:
    @functools.wraps(stock)
    def build_logitsprocs(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        if ours(vllm_config.speculative_config):
            vllm_config = copy.copy(vllm_config)
            vllm_config.speculative_config = None
        return stock(vllm_config, *args, **kwargs)

    return build_logitsprocs
