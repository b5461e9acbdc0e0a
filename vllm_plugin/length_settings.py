"""From options to what decides on draft lengths."""

from __future__ import annotations

from pathlib import Path

from proposers.length.never_slower import NeverSlower
from proposers.length.policy import Refusal
from proposers.length.predictor import AcceptancePredictor
from proposers.length.step_times import StepTimes
from proposers.length.step_times_file import StepTimesError
from proposers.length.threshold import Threshold
from vllm_plugin.config import SECTION, ConfigurationError, Options
from vllm_plugin.length_control import LengthControl


def with_length(options: Options) -> Options:
    """The options for a drafter whose drafts a policy cuts: no other rule cuts them before.

    ``min_survival`` is a rough one of the same kind; it stays where it was given.
    """
    if options.length == "fixed" or "min_survival" in options.model_fields_set:
        return options
    return options.model_copy(update={"min_survival": 0.0})


def make_control(options: Options, longest: int, *, trees: bool, hardware: str) -> LengthControl:
    """The control of one runner.

    ``trees``: several candidates are drafted, which decide by survivals of their own.

    Raises
    ------
    ConfigurationError
        In one sentence, for a file of step times that is not this machine's.
    """
    if options.length == "fixed":
        return LengthControl(None, longest)
    predictor = None if trees else AcceptancePredictor()
    if options.h is not None:
        return LengthControl(Refusal(options.h), longest, predictor=predictor)
    times = StepTimes()
    if options.step_times_path is not None:
        try:
            path = Path(options.step_times_path).expanduser()
            times = StepTimes.load(path, hardware=hardware)
        except StepTimesError as error:
            key = f"--additional-config: {SECTION}.step_times_path"
            raise ConfigurationError(f"{key}: {error}") from None
    policy = NeverSlower(Threshold(times), times)
    return LengthControl(policy, longest, predictor=predictor, step_times=times)
