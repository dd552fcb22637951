"""``python -m tests.fuzz TARGET [SECONDS] [DIRECTORY]``: coverage-guided fuzzing by atheris; see `make fuzz`.

What it finds is left in DIRECTORY as crash-…, to be given to the target again by ``python -m tests.fuzz TARGET FILE``.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["agents", "migrate.transport.frames", "migrate.engine.image"]):
    from tests.fuzz.seeds import seeds
    from tests.fuzz.targets import TARGETS


def main(name: str, seconds: str = "60", directory: str = "fuzz") -> None:
    """For so long, or the one file in place of ``seconds``."""
    logging.disable()
    target = TARGETS[name]
    if not seconds.isdigit():
        target(Path(seconds).read_bytes())
        return
    corpus = Path(directory, name)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> Any:
        target(data)

    options = [f"-max_total_time={seconds}", "-max_len=20000", "-rss_limit_mb=2048", "-timeout=20"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={corpus}/", str(corpus)], one)
    atheris.Fuzz()


main(*sys.argv[1:])
