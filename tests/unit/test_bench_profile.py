"""Where a sample of the engine is counted (`headrace-bench profile`)."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from bench.profile import (
    ADMIT,
    DECODE,
    ENCODE,
    HERE,
    HTTP,
    POSTGRES,
    REST,
    SOCKETS,
    STAGE_OF,
    STAGES,
    TRIO,
    read_shares,
    stage_of,
)

ROOT = Path("/engine/trio/asyncio")  # names in its path mean nothing
SEND = (f"{ROOT}/api/intake_connection.py", "Connection._send")
SELECT = ("/usr/lib/python3.11/selectors.py", "EpollSelector.select")
SERVE = (f"{ROOT}/api/connections.py", "Connections._serve")
RUN = (f"{ROOT}/.venv/lib/python3.11/site-packages/trio/_core/_run.py", "unrolled_run")


@pytest.mark.parametrize(
    ("frames", "stage"),
    [
        ([SEND, SERVE, RUN], SOCKETS),  # by function
        ([SELECT, SERVE, RUN], HTTP),  # by folder; what a library does for a stage is the stage's
        ([(f"{ROOT}/api/encodings.py", "decode_body"), SERVE], DECODE),  # by file
        ([(f"{ROOT}/engine/postgres/copy.py", "pack_rows.<locals>.<listcomp>"), RUN], ENCODE),
        ([(f"{ROOT}/engine/rounds.py", "Rounds.run"), RUN], ADMIT),
        ([RUN, SERVE], TRIO),
        ([SELECT, ("/usr/lib/python3.11/asyncio/base_events.py", "run"), RUN], POSTGRES),  # nobody else needs it
        ([SELECT], REST),
        ([], REST),
    ],
)
def test_a_sample_belongs_to_the_innermost_code_that_has_a_stage(frames: list[tuple[str, str]], stage: str) -> None:
    """A function before its file, a file before its folder."""
    assert stage_of(frames, ROOT) == stage


def test_every_name_in_the_table_is_there() -> None:
    """Else what was renamed or moved would be counted elsewhere, and nobody would notice."""
    for key in STAGE_OF:
        path, _, function = key.partition(":")
        assert (HERE / path).exists(), key
        found = importlib.import_module(path.removesuffix(".py").replace("/", ".")) if function else None
        for name in filter(None, function.split(".")):
            assert hasattr(found, name), key
            found = getattr(found, name)
    assert set(STAGE_OF.values()) | {TRIO, REST} == set(STAGES)


def test_only_samples_of_the_load_count(tmp_path: Path) -> None:
    """What the engine did before and after is left out, and without any sample there is nothing to tell."""
    samples = tmp_path / "samples"
    taken = [(1.0, [RUN]), (2.0, [SEND]), (3.0, [SEND]), (4.0, [RUN]), (5.0, [SERVE]), (9.0, [RUN])]
    samples.write_text("".join(json.dumps(each) + "\n" for each in taken))
    shares = read_shares(samples, ROOT, 2.0, 5.0)
    assert tuple(shares) == STAGES
    assert {stage: share for stage, share in shares.items() if share} == {SOCKETS: 0.5, TRIO: 0.25, HTTP: 0.25}
    with pytest.raises(ValueError, match="no sample"):
        read_shares(samples, ROOT, 6.0, 8.0)
