# Two images: `engine` (the default) serves, `tests` runs `make test`. Both install from requirements.lock.
FROM python:3.13-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --system --create-home --uid 10001 headrace
WORKDIR /app

FROM base AS locked
COPY requirements.lock ./
RUN python -m venv /venv && /venv/bin/pip install --require-hashes -r requirements.lock

# What only developers and the bench need leaves; then the project itself, without its sources.
FROM locked AS build
COPY pyproject.toml README.md ./
COPY config config
COPY engine engine
COPY api api
COPY bench bench
RUN /venv/bin/pip install --no-deps --no-build-isolation --no-index . \
 && /venv/bin/pip uninstall --yes asyncpg-stubs mypy pytest pytest-trio ruff setuptools uv \
      fastapi starlette pydantic pydantic-core annotated-doc annotated-types opentelemetry-api typing-inspection \
      narwhals plotly sqlalchemy uvicorn uvloop

FROM base AS tests
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
COPY requirements.lock pyproject.toml README.md Makefile ./
COPY config config
COPY engine engine
COPY api api
COPY bench bench
RUN make setup
COPY . .
RUN touch .venv/.installed && chown -R headrace /app
USER headrace
CMD ["make", "test"]

FROM base AS engine
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    HEADRACE_API=0.0.0.0:8000 \
    HEADRACE_INTAKE=0.0.0.0:8001 \
    HEADRACE_DATA=/var/lib/headrace
RUN install --directory --owner=headrace /var/lib/headrace
USER headrace
EXPOSE 8000 8001
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=6 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["headrace", "serve"]
