"""`/v1/workflows`: the state of workflows, changed by compare-and-swap."""

from contextlib import nullcontext
from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote, unquote_to_bytes

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from starlette.convertors import Convertor, register_url_convertor

from app.access import rights
from app.access.principals import Principal, Scope
from app.api.bodies import JSON, json_answer, media_type, read_body
from app.api.context import Headers
from app.api.needs import FULL_SCAN, admit, caller_of, check_again, needs, permit
from app.api.negotiation import Conditions, etag_of, unchanged
from app.api.openapi.operations import commit_operation, operation
from app.api.pages import next_link, read_cursor, write_cursor
from app.api.problems import state_problem
from app.api.schemas import NoQuery, WorkflowCommit, WorkflowQuery, encode
from app.api.service import Service, full_scans_of, service_of
from app.domain.events import Time
from app.domain.positions import MAX_NUMBER
from app.domain.workflows import MAX_KEY, Committed, StateConflict, Workflow
from app.errors import (
    ActionConflictError,
    ContentionError,
    Fault,
    InvalidInputError,
    NotFoundError,
    PreconditionRequiredError,
)
from app.store import workflow_lists
from app.store.workflow_lists import ListOrder, WorkflowFilter
from app.wire.answers import WorkflowPage
from app.wire.events import EARLIEST, read_json
from app.workflows import COMMIT_ATTEMPTS

router = APIRouter(tags=["workflows"])

PATH = "/v1/workflows/"
ROUTE = PATH + "{workflow_key}"
_COMMIT = msgspec.json.Decoder(WorkflowCommit)
NO_VERSION = MAX_NUMBER  # a version that no row ever has


class _Key(Convertor[str]):
    """The rest of a path, including slashes and line breaks."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """The key in a path."""
        return value

    def to_string(self, value: str) -> str:
        """A key as it stands in a path."""
        return value


register_url_convertor("workflow_key", _Key())

WorkflowKey = Annotated[
    str, Path(min_length=1, max_length=MAX_KEY, description="The workflow's key, path-encoded; it may hold slashes.")
]


class _PageEnd(msgspec.Struct, array_like=True):
    """Where a page ended."""

    updated_at: Time
    workflow_key: str


@router.get(
    "/v1/workflows",
    operation_id="listWorkflows",
    summary="List workflows",
    **operation(WorkflowPage, link=True, errors=(400, 422, 503)),
    dependencies=needs(Scope.WORKFLOWS_READ, None),
)
async def list_workflows(request: Request, query: Annotated[WorkflowQuery, Query()]) -> Response:
    """Answer a page, in the order of changes: by `updated_at`, then by key; or by key.

    By `oldest`, a row that changes while you page moves to the end and is answered again there; by `newest`, it moves
    to the beginning, and is left out if it was not answered before; by `key`, each row is answered exactly once. A
    caller whose rights cover some prefixes of keys is answered those workflows only.
    """
    service = service_of(request)
    wanted = WorkflowFilter(
        order=query.order,
        key_prefix=query.key_prefix,
        updated_since=query.updated_since,
        prefixes=rights.prefixes(caller_of(request)),
    )
    admit(service, caller_of(request), None, FULL_SCAN if wanted.is_full_scan else 1.0)
    filters = ["workflows", query.updated_since or EARLIEST, *_further(query)]
    after = None
    if query.cursor is not None:
        end = read_cursor(query.cursor, filters, _PageEnd)
        after = (end.updated_at, end.workflow_key)
    database = service.full_scans if wanted.is_full_scan else service.scans
    with full_scans_of(request).now() if wanted.is_full_scan else nullcontext():
        items, more = await database.read(workflow_lists.get_page, wanted, after=after, limit=query.limit)
    cursor = None
    headers = {}
    if more:
        cursor = write_cursor(_PageEnd(items[-1].updated_at, items[-1].workflow_key), filters)
        headers = next_link(request.scope["query_string"], cursor)
    return Response(encode(WorkflowPage(items, cursor)), headers=headers, media_type=JSON)


@router.get(
    "/v1/workflows/{workflow_key:workflow_key}",
    operation_id="getWorkflow",
    summary="Get one workflow's state",
    **operation(Workflow, etag=True, errors=(404, 412, 422, 503)),
    dependencies=needs(Scope.WORKFLOWS_READ),
)
async def get_workflow(request: Request, workflow_key: WorkflowKey, _query: Annotated[NoQuery, Query()]) -> Response:
    """Answer the row. Its ETag is its version; sent in `If-None-Match`, an unchanged row answers 304."""
    permit(rights.workflow(caller_of(request), Scope.WORKFLOWS_READ, workflow_key))
    _check_encoding(request, workflow_key)
    return await answer_get(service_of(request), workflow_key, request.scope["headers"])


def _further(query: WorkflowQuery) -> list[str | None]:
    """The filters beside the time, of cursors; none where the cursors of earlier releases have none."""
    if query.order is ListOrder.OLDEST and query.key_prefix is None:
        return []
    return [query.order, query.key_prefix]


async def answer_get(service: Service, workflow_key: str, headers: Headers) -> Response:
    """Answer the row to a request with these headers. Raises NotFoundError without a row."""
    row = await service.workflows.get_state(workflow_key)
    if row is None:
        raise NotFoundError(f"there is no workflow {workflow_key}")
    etag = etag_of(row)
    if unchanged(headers, etag):
        return Response(status_code=304, headers={"ETag": etag})
    return json_answer(encode(row), (b"etag", etag.encode()))


@router.put(
    "/v1/workflows/{workflow_key:workflow_key}",
    operation_id="commitWorkflow",
    summary="Commit the next state of one workflow",
    **commit_operation(),
    dependencies=needs(Scope.WORKFLOWS_WRITE),
)
async def put_workflow(request: Request, workflow_key: WorkflowKey, _query: Annotated[NoQuery, Query()]) -> Response:
    """Write the state if the row still has the version that you read; otherwise answer 412 with the current row.

    `If-None-Match: *` creates version 1, `If-Match: "<version>"` writes the next version; one of them is required.
    If both headers are sent, both conditions must hold. A commit whose `provenance.action_id` was already committed
    to this workflow repeats the first answer, with `Idempotency-Replayed: true`; with another `state` or
    `schema_version` it is a 409. After a 503 the commit may or may not be stored. Send it again with the same action
    id; that is safe.
    """
    service = service_of(request)
    permit(rights.workflow(caller_of(request), Scope.WORKFLOWS_WRITE, workflow_key))
    _check_encoding(request, workflow_key)
    media_type(request, JSON)
    conditions = required(request.scope["headers"])
    body = await read_body(request, service.settings.max_body)
    principal = await check_again(request)  # a body may take long
    permit(rights.workflow(principal, Scope.WORKFLOWS_WRITE, workflow_key))
    return await answer_put(service, principal, workflow_key, conditions, body)


def required(headers: Headers) -> Conditions:
    """The conditions of a commit. Raises PreconditionRequiredError if the headers have none."""
    conditions = Conditions(headers)
    if not conditions:
        raise PreconditionRequiredError(
            'send `If-None-Match: *` for a new workflow, or `If-Match: "<version>"` for the next state of one'
        )
    return conditions


async def answer_put(
    service: Service, principal: Principal, workflow_key: str, conditions: Conditions, body: bytes
) -> Response:
    """Commit the body and answer the row, or a problem with the current row, if the caller may read it."""
    asked = read_json(body, _COMMIT, integers=[["schema_version"]])
    try:
        outcome = await _commit(service, workflow_key, asked, conditions)
    except ActionConflictError:
        service.metrics.commit("conflict")
        raise
    if isinstance(outcome, StateConflict):
        service.metrics.commit("conflict")
        may_read = rights.workflow(principal, Scope.WORKFLOWS_READ, workflow_key) is None
        return state_problem(outcome, conditions, quote(PATH + workflow_key), with_row=may_read)
    service.metrics.commit("replayed" if outcome.replayed else "committed")
    headers = [(b"etag", etag_of(outcome.workflow).encode())]
    if outcome.replayed:
        headers.append((b"idempotency-replayed", b"true"))
    status = HTTPStatus.CREATED if outcome.workflow.version == 1 else HTTPStatus.OK
    return json_answer(encode(outcome.workflow), *headers, status=status)


async def _commit(
    service: Service, key: str, asked: WorkflowCommit, conditions: Conditions
) -> Committed | StateConflict:
    """One commit if the headers name one version; otherwise on any version that they allow."""

    async def commit_on(version: int) -> Committed | StateConflict:
        return await service.workflows.try_commit(
            key, version, asked.state, asked.provenance, schema_version=asked.schema_version
        )

    if conditions.version is not None:
        return await commit_on(conditions.version)
    row = await service.workflows.get_state(key)
    for _ in range(COMMIT_ATTEMPTS):
        # Also if nothing may be written: the action may have been applied before.
        version = 0 if row is None else row.version
        outcome = await commit_on(version if _allowed(conditions, row) else NO_VERSION)
        if isinstance(outcome, Committed) or not _allowed(conditions, outcome.current):
            return outcome
        row = outcome.current
    raise ContentionError(f"other writers were faster {COMMIT_ATTEMPTS} times in a row; nothing was written")


def _allowed(conditions: Conditions, row: Workflow | None) -> bool:
    return conditions.allow(None if row is None else etag_of(row))


def _check_encoding(request: Request, workflow_key: str) -> None:
    """Refuse a path that is not UTF-8: the server replaces bytes that it can't decode by a replacement character."""
    if "\ufffd" not in workflow_key:
        return
    try:
        unquote_to_bytes(request.scope["raw_path"]).decode()
    except UnicodeDecodeError:
        raise InvalidInputError([Fault("#/path/workflow_key", "not UTF-8")]) from None
