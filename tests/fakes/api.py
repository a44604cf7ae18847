"""The api's application over a fake engine, and a small client for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from api.app import create_app
from config.settings import Settings
from tests.fakes.engine import FakeEngine

CAMPAIGN: Mapping[str, Any] = {
    "name": "spring", "pricing_model": "cpm", "unit_price": "10", "total_budget": "5", "daily_budget": "1"
}  # fmt: skip
EVENT: Mapping[str, Any] = {"campaign_id": 1, "user_id": "ada", "event_type": "impression"}


class Told(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a problem; checks that it is one."""
        assert self.headers["content-type"] == "application/problem+json"
        told = self.json
        assert {"type", "title", "status", "detail", "code"} <= told.keys()
        assert told["status"] == self.status
        return str(told["code"])

    @property
    def faults(self) -> set[str]:
        """Names of the fields that a problem calls wrong."""
        return {error["field"] for error in self.json["errors"]}


class FakeApi:
    """The application, and what it stands on."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.engine = FakeEngine(settings)
        self.app = create_app(self.engine)
        self._client = self.app.test_client()

    async def send(
        self, method: str, path: str, body: object = None, *, data: bytes | None = None, **headers: str
    ) -> Told:
        """One request: `body` as JSON, or `data` as it is; `content_type="…"` and the like become headers."""
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        if body is not None:
            data = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        answer = await self._client.open(  # type: ignore[call-arg]  # Quart's protocol has no defaults
            path, method=method, data=data or b"", headers=sent
        )
        return Told(answer.status_code, {k.lower(): v for k, v in answer.headers}, await answer.get_data(as_text=False))

    async def create(self, **fields: object) -> dict[str, Any]:
        """Make a campaign."""
        told = await self.send("POST", "/campaigns/", {**CAMPAIGN, **fields})
        assert told.status == 201, told.body
        return dict(told.json)
