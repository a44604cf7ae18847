"""A newcomer's first campaign: the README's commands, on fresh stores, answer what the README shows."""

from __future__ import annotations

import json
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.e2e.program import Program

README: Final = Path(__file__).parents[2] / "README.md"
# A command, from `$ curl` to the line on which its quotes are closed, and what the README shows below it.
_SHOWN: Final = re.compile(r"^\$ (curl (?:'[^']*'|[^'\n])*)\n(.*?)(?=^\n|^```)", re.MULTILINE | re.DOTALL)
_MADE_ANEW: Final = {"event_id", "ts", "created_at"}  # by each run


def shown() -> Iterator[tuple[str, str]]:
    """Each command whose answer is JSON, and the answer below it."""
    for command, answer in _SHOWN.findall(README.read_text()):
        if answer.startswith("{"):
            yield command, answer


def asked(program: Program, command: str) -> Any:
    """Send what such a command sends, to the listener that it names."""
    curl = ArgumentParser()
    curl.add_argument("-s", action="store_true")
    curl.add_argument("-X", dest="method")
    curl.add_argument("-H", dest="header", type=lambda header: tuple(header.split(": ", 1)))
    curl.add_argument("-d", dest="body")
    curl.add_argument("url")
    words = curl.parse_args(shlex.split(command)[1:])
    url = words.url.replace("localhost:8000", program.api).replace("localhost:8001", program.intake)
    method = words.method or ("GET" if words.body is None else "POST")
    headers = [words.header] if words.header else []
    return program.client.request(method, url, content=words.body, headers=headers).json()


def steady(answer: Any) -> Any:
    """All of an answer but what each run makes anew."""
    if isinstance(answer, dict):
        return {name: steady(value) for name, value in answer.items() if name not in _MADE_ANEW}
    return [steady(each) for each in answer] if isinstance(answer, list) else answer


def test_the_readmes_commands_answer_what_it_shows(program: Program) -> None:
    """On whatever day they are run: an id in a command must not grow too old."""
    commands = list(shown())
    assert len(commands) >= 7
    for command, answer in commands:
        told = asked(program, command)
        if "..." not in answer:
            assert steady(told) == steady(json.loads(answer)), command
