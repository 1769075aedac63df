"""`POST /v1/chat/completions`: a job somebody waits for."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.access.scopes import require_scopes
from api.dependencies import StateDep, TenantDep
from api.http.openapi import request_docs, response_docs
from api.live.chat_stream import respond_with_chunks
from api.live.submission import read_submission
from api.schemas.chat_objects import ChatCompletion
from core.api_keys import Scope
from core.schemas.chat import ChatRequest

router = APIRouter(tags=["chat"], dependencies=[require_scopes(Scope.INFERENCE)])


@router.post(
    "/v1/chat/completions",
    openapi_extra=request_docs(ChatRequest),
    responses=response_docs(ChatCompletion, streams=True),
)
async def create_chat_completion(request: Request, state: StateDep, tenant: TenantDep) -> Response:
    """Answer at once, ahead of any batch; streamed when the body says `stream: true`."""
    return await respond_with_chunks(request, state, await read_submission(request, state, tenant))
