"""One real model for the engine tests: SmolLM2 from its PyPI package, built once per machine."""

from pathlib import Path

import pytest

from vllm_plugin import models


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return models.build("smollm2")
