"""Submissions: checked requests that become jobs. Shared by every endpoint that runs a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

import structlog
from fastapi import Depends, Request
from sqlalchemy import Insert

from api.access.admission import Admission, AdmissionDep, set_header
from api.dependencies import CallerDep, CatalogDep, ModelStatesDep, TenantDep
from api.services.key_ring import Caller
from api.services.model_states import ModelStates
from core import ids
from core.errors import ApiError, Problem
from core.models.model_files import ModelCatalog, ModelConfig, unknown_model
from core.schemas.base import parse_body
from core.schemas.chat import StoredChatFields
from core.schemas.endpoints import CHAT_ENDPOINT, ENDPOINTS, named_model
from core.schemas.generation import ModelRequest
from db import stored_chats

log = structlog.get_logger()

FALLBACK_HEADER: Final = "x-millrace-fallback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A checked request, not yet a job. `rows` are inserted in the transaction of the job, which is durable then.

    `others` are the models that may answer in place of `model`, in order.
    """

    job_id: str
    tenant: str
    caller: Caller
    endpoint: str
    body: ModelRequest
    model: ModelConfig
    document: Any  # Any: the client's JSON, stored as it was sent
    rows: tuple[Insert, ...] = ()
    others: tuple[ModelConfig, ...] = ()


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
        *,
        is_live: bool = False,
    ) -> Submission:
        """Return the submission of a body, which is checked as the backend of its model needs it.

        Of models that share the name, one that is not down is drawn. One that `is_live` gets a model of its `fallback` while its
        own is down. Raises the 4xx of an invalid body, an unknown model, an unfit one, or an exceeded limit, and the 503 of one
        whose engine does not start.
        """
        row, job_id = ENDPOINTS[endpoint], ids.new_id(ENDPOINTS[endpoint].id_prefix)
        models, state = self._catalog.only(self._caller.models), await self._states.read()
        down = {model.name for model in models.models if state.model(model.name).is_down}
        model = named_model(document, models, job_id, down)
        body = parse_body(row.body_for(model), document)
        if model is None:
            raise ApiError(unknown_model(body.model, models))
        row.check(model, body)
        submission = Submission(
            job_id=job_id,
            tenant=self._tenant,
            caller=self._caller,
            endpoint=endpoint,
            body=body,
            model=model,
            document=document,
            others=tuple(models.fallbacks(model, job_id)) if is_live else (),
        )
        if model.name in down:
            submission = await self.fall_back(submission) or submission
        await self._states.check_startable(submission.model.name)
        await self._admit(submission)
        return submission

    async def fall_back(self, submission: Submission) -> Submission | None:
        """Return a submission to the first of its other models that serves the body and is not down; None without one."""
        row, state = ENDPOINTS[submission.endpoint], await self._states.read()
        for number, model in enumerate(submission.others, 1):
            if state.model(model.name).is_down:
                continue
            try:
                body = parse_body(row.body_for(model), submission.document)
                row.check(model, body)
            except ApiError:  # a body that its own model takes
                continue
            log.info("fell_back", job=submission.job_id, model=submission.model.name, to=model.name)
            job_id = ids.new_id(row.id_prefix)
            set_header(self._request, FALLBACK_HEADER, model.name)
            others = submission.others[number:]
            return replace(submission, job_id=job_id, body=body, model=model, rows=(), others=others)
        set_header(self._request, FALLBACK_HEADER, None)
        return None

    async def _admit(self, submission: Submission) -> None:
        body, model = submission.body, submission.model
        limit = body.max_answer_tokens
        longest = min(limit if limit is not None else model.parameters.max_tokens or 0, model.context_size)
        num_bytes = len(await self._request.body())
        await self._admission.admit(
            self._request, self._caller, num_bytes=num_bytes, num_answer_tokens=longest * body.num_answers
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
