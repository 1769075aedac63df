"""Submissions: checked requests that become jobs. Shared by every endpoint that runs a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import Insert

from api.access.admission import Admission, AdmissionDep, find_model
from api.dependencies import CallerDep, CatalogDep, ModelStatesDep, TenantDep
from api.services.key_ring import Caller
from api.services.model_states import ModelStates
from core import ids
from core.errors import Problem
from core.models.model_files import ModelCatalog, ModelConfig
from core.schemas.chat import StoredChatFields
from core.schemas.endpoints import CHAT_ENDPOINT, ENDPOINTS, read_body
from core.schemas.generation import ModelRequest
from db import stored_chats


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A checked request, not yet a job. `rows` are inserted in the transaction of the job, which is durable then."""

    job_id: str
    tenant: str
    caller: Caller
    endpoint: str
    body: ModelRequest
    model: ModelConfig
    document: Any  # Any: the client's JSON, stored as it was sent
    rows: tuple[Insert, ...] = ()


def with_stored_chat(submission: Submission) -> Submission:
    """Return the submission with the row that keeps its chat completion, if its body asks for that."""
    body = submission.body
    if not isinstance(body, StoredChatFields) or not body.store:
        return submission
    row = stored_chats.insert_stored_chat(
        submission.job_id, submission.tenant, submission.model.name, body.metadata or {}
    )
    return replace(submission, rows=(*submission.rows, row))


class SubmissionBuilder:
    """Checks the body of a request against the models, the key and its limits."""

    def __init__(
        self,
        request: Request,
        tenant: str,
        caller: Caller,
        catalog: ModelCatalog,
        states: ModelStates,
        admission: Admission,
    ) -> None:
        self._request = request
        self._tenant = tenant
        self._caller = caller
        self._catalog = catalog
        self._states = states
        self._admission = admission

    async def build(
        self,
        document: Any,  # Any: parsed JSON
        endpoint: str = CHAT_ENDPOINT,
    ) -> Submission:
        """Return the submission of a body, which is checked as the backend of its model needs it.

        Raises the 4xx of an invalid body, an unknown model, an unfit one, or an exceeded limit, and the 503 of one whose engine
        does not start.
        """
        row = ENDPOINTS[endpoint]
        body = read_body(endpoint, document, self._catalog.only(self._caller.models))
        model = find_model(self._catalog, self._caller, body.model)
        row.check(model, body)
        await self._states.check_startable(model.name)
        limit = body.max_answer_tokens
        longest = min(limit if limit is not None else model.parameters.max_tokens or 0, model.context_size)
        num_bytes = len(await self._request.body())
        await self._admission.admit(
            self._request, self._caller, num_bytes=num_bytes, num_answer_tokens=longest * body.num_answers
        )
        self._request.state.job_id = job_id = ids.new_id(row.id_prefix)  # for the access log
        return Submission(
            job_id=job_id,
            tenant=self._tenant,
            caller=self._caller,
            endpoint=endpoint,
            body=body,
            model=model,
            document=document,
        )


async def get_submission_builder(
    request: Request,
    tenant: TenantDep,
    caller: CallerDep,
    catalog: CatalogDep,
    states: ModelStatesDep,
    admission: AdmissionDep,
) -> SubmissionBuilder:
    """The builder of a request; a class as dependency would be constructed in a thread."""
    return SubmissionBuilder(request, tenant, caller, catalog, states, admission)


SubmissionBuilderDep = Annotated[SubmissionBuilder, Depends(get_submission_builder)]


def cancelled_problem() -> Problem:
    """The problem of a job that was cancelled by another request."""
    return Problem(status=400, message="This request was cancelled.", code="cancelled")
