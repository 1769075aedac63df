"""`POST /v1/completions` and `POST /v1/embeddings`: jobs somebody waits for, as a chat is."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.access.scopes import require_scopes
from api.dependencies import StateDep, TenantDep
from api.http.openapi import request_docs, response_docs
from api.live.chat_stream import respond_with_chunks
from api.live.submission import read_submission
from api.schemas.completion_objects import CompletionObject, EmbeddingList
from core.api_keys import Scope
from core.schemas.completion import CompletionBody, EmbeddingBody
from core.schemas.endpoints import COMPLETIONS_ENDPOINT, EMBEDDINGS_ENDPOINT

router = APIRouter(tags=["completions"], dependencies=[require_scopes(Scope.INFERENCE)])


@router.post(
    COMPLETIONS_ENDPOINT,
    openapi_extra=request_docs(CompletionBody),
    responses=response_docs(CompletionObject, streams=True),
)
async def create_completion(request: Request, state: StateDep, tenant: TenantDep) -> Response:
    """Continue a prompt, or several, without a template; streamed when the body says `stream: true`."""
    return await respond_with_chunks(
        request, state, await read_submission(request, state, tenant, COMPLETIONS_ENDPOINT)
    )


@router.post(EMBEDDINGS_ENDPOINT, openapi_extra=request_docs(EmbeddingBody), responses=response_docs(EmbeddingList))
async def create_embeddings(request: Request, state: StateDep, tenant: TenantDep) -> Response:
    """A vector for each input, of a model whose file says `embeddings: true`."""
    return await respond_with_chunks(request, state, await read_submission(request, state, tenant, EMBEDDINGS_ENDPOINT))
