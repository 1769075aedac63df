"""Several hosts behind nginx and PgBouncer: processes and services restart, a host is cut off, clocks differ, streams move."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Final

import pytest

from tests.faults.load import Chats, chat_body, expected_answer, new_prompt, start_batch
from tests.faults.test_clocks import id_created_at
from tests.fleet.fleet import CLOCK_SECONDS, LEASE_SECONDS, Fleet, FleetProcess
from tests.fleet.hosts import Host
from tests.fleet.load import WAIT_SECONDS, Batches, check_batches, check_usage
from tests.support.stack import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

# The fake model never closes its string.
LONG: Final[dict[str, Any]] = {
    "model": "fake",
    "input": "hello",
    "text": {"format": {"type": "json_object"}},
    "max_output_tokens": 200,
}


def running_shards(fleet: Fleet, host: Host) -> dict[str, int]:
    """The shards that workers of a host have, with their fences."""
    rows = fleet.query("SELECT id, fence, owner FROM shards WHERE state = 'running'")
    return {row.id: row.fence for row in rows if f"@{host.name}/" in row.owner}


def restart(fleet: Fleet, processes: list[FleetProcess]) -> None:
    """Stop and start processes of different roles at once, and wait until they are ready."""

    def again(process: FleetProcess) -> None:
        process.stop()
        process.start()
        fleet.wait_ready(process)

    with ThreadPoolExecutor(len(processes)) as threads:
        list(threads.map(again, processes))


def test_every_process_is_restarted_one_after_the_other_under_load(fleet: Fleet) -> None:
    """As in an upgrade: of each role the first, then the second. Chats may be refused, which SDKs retry, but none is wrong."""
    pids = {process.pid for process in fleet.processes}
    first, second = (
        [process for process in fleet.processes if process.host in hosts]
        for hosts in ((fleet.hosts[1], fleet.hosts[3]), (fleet.hosts[2], fleet.hosts[4]))
    )
    with Batches(fleet) as batches, Chats(fleet, 2) as chats:
        for processes in (first, second):
            restart(fleet, processes)
    assert not pids & {process.pid for process in fleet.processes}
    assert chats.ends["answered"]
    check_batches(fleet, *batches.ids)
    check_usage(fleet)


def test_the_shards_of_a_host_that_is_cut_off_are_taken_over_once_and_it_returns(fleet: Fleet) -> None:
    """As a host that is unreachable for 90 s with a lease of 60 s: it is cut off for at least one and a half leases."""
    if not fleet.network.can_cut:
        pytest.skip("needs network namespaces")
    host = fleet.hosts[3]
    batch_id = start_batch(fleet, 96)
    wait_for(lambda: len(running_shards(fleet, host)) >= 2, "the host works on the batch", WAIT_SECONDS)
    fleet.network.cut(host)
    try:
        began = time.monotonic()
        time.sleep(1)  # what has reached PgBouncer is committed
        held = running_shards(fleet, host)
        assert held
        check_batches(fleet, batch_id)
        rows = fleet.query("SELECT id, fence FROM shards WHERE id = ANY(:ids)", ids=list(held))
        assert {row.id: row.fence for row in rows} == {shard_id: fence + 1 for shard_id, fence in held.items()}
        time.sleep(max(0.0, 1.5 * LEASE_SECONDS - (time.monotonic() - began)))
    finally:
        fleet.network.join(host)
    with Batches(fleet) as batches:
        wait_for(lambda: bool(running_shards(fleet, host)), "the host takes shards again", WAIT_SECONDS)
    check_batches(fleet, batch_id, *batches.ids)
    check_usage(fleet)


def test_a_stream_of_one_api_is_read_on_at_the_other(fleet: Fleet) -> None:
    one, other = fleet.apis
    events: list[Any] = []
    with one.responses.create(**LONG, background=True, stream=True) as stream:
        for event in stream:
            events.append(event)
            if len(events) == 40:
                break
    response_id, last = events[0].response.id, events[-1].sequence_number
    with other.responses.retrieve(response_id, stream=True, starting_after=last) as rest:
        events += list(rest)
    assert events[-1].type == "response.incomplete"
    assert all(one.sequence_number < two.sequence_number for one, two in pairwise(events))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == one.responses.retrieve(response_id).output_text


def test_a_job_and_the_events_of_a_batch_are_followed_at_either_api(fleet: Fleet) -> None:
    one, other = fleet.apis
    prompt = new_prompt()
    body = chat_body(prompt, stream=True)
    job: Any = one.post("/jobs", body=body, cast_to=object)
    begun = follow(one, f"/jobs/{job['id']}/events", stop_after=5)
    rest = follow(other, f"/jobs/{job['id']}/events", after=begun[-1][0])
    text = "".join(choice["delta"].get("content") or "" for _, data in begun + rest for choice in data["choices"])
    assert text == expected_answer(prompt)
    numbers = [int(number) for number, _ in begun + rest if number]
    assert numbers == sorted(set(numbers))
    batch_id = start_batch(fleet, 16)
    seen = follow(one, f"/batches/{batch_id}/events?lines=all", stop_after=1)
    seen += follow(other, f"/batches/{batch_id}/events?lines=all", after=seen[-1][0])
    assert sum(data.get("custom_id") is not None for _, data in seen) == 16
    check_batches(fleet, batch_id)


def follow(client: Any, path: str, *, after: str = "", stop_after: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Return the ids and the data of server-sent events, from the id `after` on, up to the end or a number of them."""
    found: list[tuple[str, dict[str, Any]]] = []
    headers = {"authorization": f"Bearer {client.api_key}", **({"last-event-id": after} if after else {})}
    with client._client.stream("GET", f"{client.base_url}{path.removeprefix('/')}", headers=headers) as response:
        assert response.status_code == 200, response.read()
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            fields[name] = value
            if not line:
                if fields.get("data", "").startswith("{"):
                    found.append((fields.get("id", ""), json.loads(fields["data"])))
                fields = {}
            if stop_after and len(found) == stop_after:
                break
    return found


def test_postgres_is_restarted_under_load(fleet: Fleet) -> None:
    with Batches(fleet) as batches, Chats(fleet, 2) as chats:
        wait_for(lambda: chats.ends["answered"] > 2, "chats are answered", WAIT_SECONDS)
        for _ in range(2):
            fleet.services.postgres.stop()
            fleet.services.postgres.launch()
            fleet.services.postgres.wait()
            before = chats.ends["answered"]
            wait_for(lambda: chats.ends["answered"] > before + 2, "chats are answered again", WAIT_SECONDS)  # noqa: B023
    check_batches(fleet, *batches.ids)
    check_usage(fleet)


def test_hosts_whose_clocks_differ_by_five_minutes_work_together(fleet: Fleet) -> None:
    owners = "SELECT w.id, extract(epoch FROM w.started_at) AS at FROM shards s JOIN workers w ON w.id = s.owner"
    shifts: set[int] = set()

    def have_both() -> bool:
        shifts.update(round((id_created_at(row.id) - float(row.at)) / CLOCK_SECONDS) for row in fleet.query(owners))
        return shifts == {-1, 1}

    with Batches(fleet) as batches:
        wait_for(have_both, "workers with either clock have shards", WAIT_SECONDS)
    for _ in range(3):  # the apis take turns, and count the calls of the key together
        for client in fleet.apis:
            assert client.models.list().data
    check_batches(fleet, *batches.ids)


def test_the_doctor_finds_nothing_that_prevents_operation_and_the_clock(fleet: Fleet) -> None:
    done = fleet.millrace(fleet.workers[0], "doctor", "--json")
    findings = {each["name"]: each for each in json.loads(done.stdout)}
    bad = [name for name, finding in findings.items() if finding["level"] == "bad"]
    assert bad == ["gpu"], "only that the cards of the test are none of llama.cpp's"
    assert findings["clock"]["level"] == "warning"
    assert "pooler" in findings["connections"]["message"]
