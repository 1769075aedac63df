"""`POST /v1/chat/completions`: a job that is answered in the response."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.access.scopes import require_scopes
from api.http.json_body import JsonDocument
from api.http.openapi import response_docs
from api.live.chat_stream import respond_with_chunks
from api.live.live_job import LiveJobsDep
from api.live.submission import Submission, SubmissionBuilderDep, with_stored_chat
from api.schemas.chat_objects import ChatCompletion
from core.api_keys import Scope
from core.schemas.chat import ChatRequest

router = APIRouter(tags=["chat"], dependencies=[require_scopes(Scope.INFERENCE)])


@router.post("/v1/chat/completions", response_class=Response, responses=response_docs(ChatCompletion, streams=True))
async def create_chat_completion(
    request: Request,
    document: JsonDocument[ChatRequest],
    submissions: SubmissionBuilderDep,
    live_jobs: LiveJobsDep,
) -> Response:
    """Answer at once, ahead of any batch; streamed with `stream: true`, kept with `store: true`."""

    async def fall_back(failed: Submission) -> Submission | None:
        other = await submissions.fall_back(failed)
        return with_stored_chat(other) if other is not None else None

    submission = with_stored_chat(await submissions.build(document, is_live=True))
    return await respond_with_chunks(request, live_jobs, submission, fall_back)
