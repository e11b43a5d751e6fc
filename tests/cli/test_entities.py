"""`pqs get`, `list`, `counts`, `history`, `overdue` and `status`: results in every format."""

import csv
import json

import httpx
import pytest

from tests.cli.conftest import ACTIVE, AWAITING, ODD, OTHER, Ask
from tests.processes import Service

pytestmark = pytest.mark.usefixtures("anyio_backend")


def rows(printed: str) -> list[list[str]]:
    """The cells of a table."""
    return [line.split() for line in printed.splitlines()]


def test_an_entity_is_a_line_for_each_fact(ask: Ask) -> None:
    """Facts for people, and nothing on standard error."""
    run = ask("get", AWAITING)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == (
        f"id                 {AWAITING}\n"
        "state              awaiting_ack\n"
        "type               compute\n"
        "ack deadline       2026-01-01T00:00:32Z\n"
        "liveness deadline  -\n"
        "updated            2026-01-01T00:00:03Z\n"
        "version            3\n"
    )


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["get", ACTIVE], f"/v1/entities/{ACTIVE}"),
        (["counts"], "/v1/state-counts"),
        (["list", "--limit", 2], "/v1/entities?limit=2"),
        (["history", ACTIVE], f"/v1/entities/{ACTIVE}/history?limit=1000"),
        (["watermarks"], "/v1/watermarks"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_json_is_the_bytes_of_the_service(service: Service, ask: Ask, arguments: list[object], path: str) -> None:
    """Not one byte differs, but for the end of the line."""
    run = ask(*arguments, "-o", "json")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == httpx.get(service.url + path).text + "\n"


def test_ndjson_is_the_bytes_of_each_item(service: Service, ask: Ask) -> None:
    """An item a line, cut out of the page."""
    run = ask("list", "-o", "ndjson")
    page = httpx.get(f"{service.url}/v1/entities").text
    lines = run.stdout.splitlines()
    assert page == '{"items":[' + ",".join(lines) + '],"next_cursor":null}'
    assert {json.loads(line)["entity_id"] for line in lines} == {str(each) for each in (AWAITING, ACTIVE, OTHER, ODD)}


def test_names_are_what_other_commands_take(ask: Ask) -> None:
    """One id a line, filtered by state."""
    run = ask("list", "--state", "active", "--state", "awaiting_ack", "-o", "name")
    assert set(run.stdout.split()) == {str(each) for each in (AWAITING, ACTIVE, OTHER)}


def test_csv_has_every_column(ask: Ask) -> None:
    """A head and a line for each entity; absent values are empty."""
    [row] = csv.DictReader(ask("list", "--state", "awaiting_ack", "-o", "csv").stdout.splitlines())
    assert (row["id"], row["state"], row["position"]) == (str(AWAITING), "awaiting_ack", "sequence 3")
    assert (row["ack deadline"], row["liveness deadline"]) == ("2026-01-01T00:00:32Z", "")


def test_a_limit_is_said_to_have_cut(ask: Ask) -> None:
    """A person is told that there are more, beside the results; a program is not."""
    run = ask("list", "--limit", 1)
    assert len(rows(run.stdout)) == 2
    assert run.stderr == "pqs: there are more; a higher --limit shows them\n"
    assert ask("list", "--limit", 1, "-o", "name").stderr == ""


@pytest.mark.parametrize("output", ["table", "wide", "csv"])
def test_data_does_not_steer_the_terminal(ask: Ask, output: str) -> None:
    """Control characters and marks of direction are printed as escapes."""
    printed = ask("list", "--state", "pending_registration", "-o", output).stdout
    assert r"e\x1b[31mvil\x9b\u202e" in printed
    assert printed.replace("\n", "").isprintable()


def test_counts_have_each_state_and_the_total(ask: Ask) -> None:
    """Each state has a line, also without entities."""
    table = dict(rows(ask("counts").stdout)[1:])
    assert (table["active"], table["awaiting_ack"], table["rejected"], table["total"]) == ("2", "1", "0", "4")


def test_lists_are_narrowed_by_id_and_time(ask: Ask) -> None:
    """The beginning of an id, and the time of the last change."""
    assert ask("list", "--id-prefix", str(AWAITING)[:8], "-o", "name").stdout.split() == [str(AWAITING)]
    assert ask("list", "--updated-since", "2999-01-01T00:00:00Z", "-o", "name").stdout == ""


def test_domains_have_their_totals(ask: Ask) -> None:
    """Each domain has a line."""
    table = rows(ask("domains").stdout)
    assert table[0] == ["DOMAIN", "ENTITIES", "ACTIVE"]
    assert {row[0]: row[1:] for row in table[1:]}["registration"] == ["4", "2"]


def test_overdue_nodes_with_their_delay(ask: Ask) -> None:
    """The delay is counted up to the time that is given; the next deadline is told beside the results."""
    run = ask("overdue", "ack", "--as-of", "2026-01-01T00:02:05Z")
    assert rows(run.stdout)[1:] == [[str(AWAITING), "1m33s", "2026-01-01T00:00:32Z", "awaiting_ack", "compute"]]
    early = ask("overdue", "liveness", "--as-of", "2026-01-01T00:01:00Z")
    assert (len(rows(early.stdout)), early.stderr) == (1, "pqs: the next deadline passes in 5s\n")
    late = ask("overdue", "liveness", "-o", "name")
    assert set(late.stdout.split()) == {str(ACTIVE), str(OTHER)}


def test_a_history_from_either_end(ask: Ask) -> None:
    """Each change has the state before and after."""
    table = rows(ask("history", AWAITING).stdout)
    assert [row[1] for row in table[1:]] == [
        "registration.initiated",
        "registration.accepted",
        "registration.ack_requested",
    ]
    assert table[3][3:5] == ["accepted", "awaiting_ack"]
    newest = ask("history", AWAITING, "--newest-first", "--limit", 1, "-o", "ndjson").stdout
    assert json.loads(newest)["version"] == 3


def test_the_status_at_a_glance(service: Service, ask: Ask) -> None:
    """A line for each part; as JSON, each answer of the service under a name."""
    run = ask("status")
    assert run.returncode == 0
    table = {line[:16].strip(): line[18:].split() for line in run.stdout.splitlines()}
    assert table["service"] == ["ready", service.url]
    assert table["entities"][0] == "4"
    assert (table["overdue ack"][0], table["overdue liveness"][0], table["dead letters"][0]) == ("1", "2", "0")
    found = json.loads(ask("status", "-o", "json").stdout)
    assert found["counts"]["total"] == 4
    assert found["ready"]["status"] == "ready"
    assert list(found) == ["ready", "counts", "overdue_ack", "overdue_liveness", "dead_letters", "watermarks"]
