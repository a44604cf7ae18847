"""Books that differ halt their campaign, and no other; an operator brings it back while the program runs."""

from __future__ import annotations

import psycopg
import pytest

from tests.e2e.program import Program, headrace, impression, running


def tamper(program: Program, statement: str) -> None:
    """Change a row behind the program's back."""
    with psycopg.connect(program.env["DB_URL"], autocommit=True) as connection:
        assert connection.execute(statement).rowcount > 0


def halted(program: Program, campaign: int) -> str | None:
    """What the api says of it."""
    answer = program.client.get(f"{program.api}/campaigns/{campaign}")
    assert answer.status_code == 200
    reason = answer.json()["halted"]
    return None if reason is None else str(reason)


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_books_are_halted_and_rebuilt_under_a_running_program(env: dict[str, str], workers: int) -> None:
    """Audit: exit 1 and 503 for this campaign only. Recover: accepted again, retries are duplicates, audit clean."""
    with running({**env, "HEADRACE_WORKERS": str(workers)}) as program:
        wrong, sound = program.create()["id"], program.create()["id"]
        first = impression(wrong)
        assert [program.post(event).status_code for event in (first, impression(sound))] == [200, 200]
        tamper(program, f"UPDATE ledger SET spent = spent + 5 WHERE campaign_id = {wrong}")

        looked = headrace("audit", "--no-halt", env=program.env)
        assert looked.returncode == 1, looked.stderr
        assert halted(program, wrong) is None
        audited = headrace("audit", env=program.env)
        assert audited.returncode == 1, audited.stderr
        assert f"headrace recover {wrong}" in audited.stdout
        assert "ledger spent" in str(halted(program, wrong))
        assert halted(program, sound) is None

        for to in program.listeners:
            for event in (first, impression(wrong)):
                refused = program.post(event, to=to)
                assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
                assert int(refused.headers["retry-after"]) == 30
            batch = program.batch([impression(wrong), impression(sound)], to=to)
            assert (batch["accepted"], batch["retry"]) == (1, 1)
            assert (batch["results"][0]["status"], batch["results"][0]["reason"]) == ("retry", "unavailable")
        assert program.client.get(f"{program.api}/readyz").status_code == 200
        program.wait_for(lambda: "headrace_campaigns_halted 1.0" in program.client.get(f"{program.api}/metrics").text)
        assert program.report(wrong)["impressions"] == 1

        recovered = headrace("recover", str(wrong), env=program.env)
        assert recovered.returncode == 0, recovered.stdout + recovered.stderr
        assert recovered.stdout.endswith("recovered 1 of 1 campaign\n")
        program.wait_for(lambda: program.post(impression(wrong)).status_code == 200)
        again = program.post(first)
        assert (again.status_code, again.json()["status"]) == (200, "duplicate")
        assert halted(program, wrong) is None
        program.audit()


def test_an_event_that_postgres_lost_halts_its_campaign(program: Program) -> None:
    """Redis calls it committed: the program finds that itself, counts it, and tells no sender 200."""
    campaign, other = program.create()["id"], program.create()["id"]
    lost = impression(campaign)
    assert program.post(lost).status_code == 200
    tamper(program, "DELETE FROM events")
    program.wait_for(lambda: "headrace_campaigns_halted 1.0" in sent_again(program, lost))
    assert program.post(lost).status_code == 503
    assert program.post(impression(other)).status_code == 200
    metrics = program.client.get(f"{program.api}/metrics").text
    assert "headrace_differences_total 1.0" in metrics
    assert str(lost["event_id"]) in str(halted(program, campaign))
    assert headrace("recover", str(campaign), env=program.env).returncode == 0
    program.wait_for(lambda: program.post(lost).status_code == 200)
    assert program.report(campaign)["impressions"] == 1
    program.audit()


def sent_again(program: Program, event: dict[str, object]) -> str:
    """Send it once more, which is never answered 200 now; the metrics."""
    assert program.post(event).status_code == 503
    return program.client.get(f"{program.api}/metrics").text
