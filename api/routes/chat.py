"""`POST /v1/chat/completions`: a job somebody waits for."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.answering import answer_in_chunks
from api.openapi import gives, takes
from api.scopes import needs
from api.state import StateDep, TenantDep
from api.submitting import read_submission
from core.keys import Scope
from core.wire.chat import ChatRequest
from core.wire.chat_objects import ChatCompletion

router = APIRouter(tags=["chat"], dependencies=[needs(Scope.INFERENCE)])


@router.post("/v1/chat/completions", openapi_extra=takes(ChatRequest), responses=gives(ChatCompletion, streams=True))
async def create_chat_completion(request: Request, state: StateDep, tenant: TenantDep) -> Response:
    """Answer at once, ahead of any batch; streamed when the body says `stream: true`."""
    return await answer_in_chunks(request, state, await read_submission(request, state, tenant))
