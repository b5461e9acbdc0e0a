"""Refusals at the door: bad settings end the start with one sentence, before a model is loaded."""

import functools
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proposers.length import step_times_file
from proposers.length.step_times_file import StepTimesError
from vllm_plugin import PROPOSERS as NAMES
from vllm_plugin import (
    draft_delivery,
    hooks,
    metrics,
    path_engine,
    path_settings,
    request_options,
    warm_start,
)
from vllm_plugin.config import (
    MAX_DRAFT_LENGTH,
    SECTION,
    ConfigurationError,
    Options,
    read_options,
)
from vllm_plugin.path_settings import PathSettings

_SETTINGS = {"method", "model", "num_speculative_tokens"}
PROPOSERS = tuple(f"vllm_plugin.{name}" for name in NAMES)


def install() -> None:
    """Check engine arguments that name one of our proposers before vLLM acts on them."""
    for hook, replacement in ((hooks.CREATE_CONFIG, _guarded), (hooks.MODEL_PATH, _keeping_paths)):
        if hooks.problem(hook) is None:
            hooks.install(hook, replacement)


def check_workers(tensor_parallel: int, pipeline_parallel: int) -> None:
    """Refuse several workers: each would draft and draw on its own, and nobody proved that law."""
    if tensor_parallel > 1 or pipeline_parallel > 1:
        raise ConfigurationError(
            f"specproof serves one worker per engine, but tensor_parallel_size is "
            f"{tensor_parallel} and pipeline_parallel_size is {pipeline_parallel}; set both to 1"
        )


def check(model: str, speculative_config: object, additional_config: object) -> bool:
    """Refuse what the plugin cannot serve; say whether the arguments name one of our proposers.

    Raises
    ------
    ConfigurationError
        One sentence that says what was given, what is allowed and what to do.
    """
    settings = _as_mapping(speculative_config)
    if settings is None or settings.get("model") not in PROPOSERS:
        _refuse_options_without_us(additional_config)
        return False
    wrong = hooks.speculation_problem()
    if wrong:
        raise ConfigurationError(f"specproof refuses to speculate: {wrong}")
    forced = os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "").strip()
    if forced not in ("", "0"):
        raise ConfigurationError(
            f"VLLM_USE_V2_MODEL_RUNNER={forced} forces vLLM's second model runner, which takes "
            "no custom proposer; unset it to serve with specproof"
        )
    if settings.get("method") != "custom_class":
        raise ConfigurationError(
            f"--speculative-config: method is {settings.get('method')!r}, but {settings['model']} "
            "needs method 'custom_class'"
        )
    unused = sorted(set(settings) - _SETTINGS)
    if unused:
        raise ConfigurationError(
            f"--speculative-config: {unused[0]!r} has no effect with {settings['model']}; "
            f"its settings are {', '.join(sorted(_SETTINGS))}, options go to --additional-config"
        )
    length = settings.get("num_speculative_tokens")
    if isinstance(length, bool) or not isinstance(length, int):
        raise ConfigurationError(
            f"--speculative-config: num_speculative_tokens is {length!r}; "
            f"give a whole number from 1 to {MAX_DRAFT_LENGTH}"
        )
    if not 1 <= length <= MAX_DRAFT_LENGTH:
        raise ConfigurationError(
            f"--speculative-config: num_speculative_tokens is {length}; "
            f"it must lie in 1..{MAX_DRAFT_LENGTH}"
        )
    options = read_options(_as_mapping(additional_config) or {})
    _check_packages(settings["model"], options)
    _check_lengths(options)
    _resolve_paths(speculative_config, additional_config)
    warm_start.refuse_without_table(settings["model"], options)
    if _looks_like_a_path(model) and not Path(model).expanduser().is_dir():
        raise ConfigurationError(f"the model folder {model} does not exist")
    return True


def _resolve_paths(speculative_config: object, additional_config: object) -> PathSettings | None:
    """Several candidates, if they are asked for, from arguments that were checked."""
    settings = _as_mapping(speculative_config) or {}
    options = read_options(_as_mapping(additional_config) or {})
    proposer = settings["model"].rpartition(".")[2]
    found = path_settings.resolve(proposer, options, settings["num_speculative_tokens"])
    if found is not None:
        wrong = next((p for hook in hooks.PATHS if (p := hooks.problem(hook))), None)
        if wrong:
            raise ConfigurationError(f"specproof refuses to verify several candidates: {wrong}")
    return found


def _check_packages(proposer: str, options: Options) -> None:
    """Refuse a drafter whose package is missing, before a model is loaded."""
    suffix = proposer == "vllm_plugin.Suffix"
    suffix |= proposer == "vllm_plugin.Chooser" and "suffix" in options.members
    if suffix and importlib.util.find_spec("arctic_inference") is None:
        raise ConfigurationError(
            f"suffix decoding in {proposer} needs the package arctic-inference, which is not "
            "installed; pip install arctic-inference==0.3.0 builds it from source, or do without"
        )


def _check_table(model_config: Any, additional_config: object) -> None:
    """Refuse a table's file that is not this model's; let its engine save before it is killed."""
    options = read_options(_as_mapping(additional_config) or {})
    if options.table_path is not None:
        warm_start.check(model_config, options)
        warm_start.wait_for_saving()


def _mark(speculative_config: Any, additional_config: object) -> None:
    """Note what front ends have to refuse."""
    options = read_options(_as_mapping(additional_config) or {})
    request_options.mark(speculative_config, speculative_config.model.rpartition(".")[2], options)


def _check_lengths(options: Options) -> None:
    """Refuse a length policy whose times cannot be had."""
    if options.length != "threshold":
        return
    wrong = next((p for hook in hooks.STEPS if (p := hooks.problem(hook))), None)
    if wrong:
        raise ConfigurationError(
            f"specproof cannot time steps here, set length to 'fixed': {wrong}"
        )
    if options.step_times_path is not None:
        try:
            step_times_file.read(Path(options.step_times_path).expanduser())
        except StepTimesError as error:
            raise ConfigurationError(
                f"--additional-config: {SECTION}.step_times_path: {error}"
            ) from None


def _refuse_options_without_us(additional_config: object) -> None:
    options = _as_mapping(additional_config)
    if options and SECTION in options:
        raise ConfigurationError(
            f"--additional-config has a {SECTION!r} section, but --speculative-config names "
            f"none of {', '.join(PROPOSERS)}; name one or drop the section"
        )


def _looks_like_a_path(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~"))


def _as_mapping(value: object) -> Mapping[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, Mapping) else None


def _guarded(original: Any) -> Any:
    @functools.wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        paths = None
        try:
            ours = check(self.model, self.speculative_config, self.additional_config)
            if ours:
                check_workers(self.tensor_parallel_size, self.pipeline_parallel_size)
                metrics.prepare()
                paths = _resolve_paths(self.speculative_config, self.additional_config)
            with path_engine.prepared(self, paths):
                config = original(self, *args, **kwargs)
            if paths is not None:
                path_engine.refuse_model(config)
                path_engine.adapt(config)
            if ours:
                _check_table(config.model_config, self.additional_config)
                _mark(config.speculative_config, self.additional_config)
                draft_delivery.install_in_core()
        except ConfigurationError as error:
            if _is_vllm_command():
                sys.exit(f"specproof: {error}")  # no traceback in front of a person
            raise
        return config

    return create_engine_config


def _keeping_paths(original: Any) -> Any:
    """A path is no repository name: one that does not exist is left for the checks that follow."""

    @functools.wraps(original)
    def get_model_path(model: Any, revision: Any = None) -> Any:
        if _looks_like_a_path(str(model)):
            return model
        return original(model, revision)

    return get_model_path


def _is_vllm_command() -> bool:
    return Path(sys.argv[0]).name == "vllm" or sys.argv[0].endswith(
        ("vllm/entrypoints/cli/main.py", "vllm/entrypoints/openai/api_server.py")
    )
