"""`POST /v1/completions` and `POST /v1/embeddings`: jobs somebody waits for, as a chat is."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.answering import answer_in_chunks
from api.openapi import gives, takes
from api.scopes import needs
from api.state import StateDep, TenantDep
from api.submitting import read_submission
from core.keys import Scope
from core.wire.completion import CompletionBody
from core.wire.completion_objects import CompletionObject, EmbeddingList
from core.wire.embedding import EmbeddingBody
from core.wire.endpoints import COMPLETIONS_ENDPOINT, EMBEDDINGS_ENDPOINT

router = APIRouter(tags=["completions"], dependencies=[needs(Scope.INFERENCE)])


@router.post(COMPLETIONS_ENDPOINT, openapi_extra=takes(CompletionBody), responses=gives(CompletionObject, streams=True))
async def create_completion(request: Request, state: StateDep, tenant: TenantDep) -> Response:
    """Continue a prompt, or several, without a template; streamed when the body says `stream: true`."""
    return await answer_in_chunks(request, state, await read_submission(request, state, tenant, COMPLETIONS_ENDPOINT))


@router.post(EMBEDDINGS_ENDPOINT, openapi_extra=takes(EmbeddingBody), responses=gives(EmbeddingList))
async def create_embeddings(request: Request, state: StateDep, tenant: TenantDep) -> Response:
    """A vector for each input, of a model whose file says `embeddings: true`."""
    return await answer_in_chunks(request, state, await read_submission(request, state, tenant, EMBEDDINGS_ENDPOINT))
