"""What a replay finds can be given to the engine: the names and defaults are the same."""

import subprocess
import sys

import vllm_plugin
from proposers.replay.drafters import DRAFTERS, ENGINE_OPTIONS
from vllm_plugin.config import Options


def test_option_names_and_defaults_are_the_plugins() -> None:
    defaults = {name: field.default for name, field in Options.model_fields.items()}
    seen = set(ENGINE_OPTIONS)
    for name, kind in DRAFTERS.items():
        for option, value in kind.defaults.items():
            assert defaults[option] == value, f"{option} of {name}"
            seen.add(option)
    assert seen == set(defaults)


def test_every_drafter_names_a_class_of_the_plugin() -> None:
    for kind in DRAFTERS.values():
        package, name = kind.engine_class.split(".")
        assert package == "vllm_plugin"
        assert name in vllm_plugin.__all__


def test_the_command_is_there_and_costs_no_numba() -> None:
    """`specproof --help` in a process of its own: a vLLM worker fails once llvmlite is loaded."""
    code = (
        "import sys; from vllm_plugin.cli import app; "
        "names = {c.name or c.callback.__name__ for c in app.registered_commands}; "
        "assert 'simulate' in names, names; "
        "assert not {'numba', 'llvmlite', 'torch', 'vllm'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
