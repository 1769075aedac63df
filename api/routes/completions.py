"""`POST /v1/completions` and `POST /v1/embeddings`: jobs that are answered in the response, like a chat."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.access.scopes import require_scopes
from api.http.json_body import JsonDocument
from api.http.openapi import response_docs
from api.live.chat_stream import respond_with_chunks
from api.live.live_job import LiveJobsDep
from api.live.submission import SubmissionBuilderDep
from api.schemas.completion_objects import CompletionObject, EmbeddingList
from core.api_keys import Scope
from core.schemas.completion import CompletionBody, EmbeddingBody
from core.schemas.endpoints import COMPLETIONS_ENDPOINT, EMBEDDINGS_ENDPOINT

router = APIRouter(tags=["completions"], dependencies=[require_scopes(Scope.INFERENCE)])


@router.post(COMPLETIONS_ENDPOINT, response_class=Response, responses=response_docs(CompletionObject, streams=True))
async def create_completion(
    request: Request,
    document: JsonDocument[CompletionBody],
    submissions: SubmissionBuilderDep,
    live_jobs: LiveJobsDep,
) -> Response:
    """Continue a prompt, or several, without a template; streamed with `stream: true`."""
    submission = await submissions.build(document, COMPLETIONS_ENDPOINT)
    return await respond_with_chunks(request, live_jobs, submission)


@router.post(EMBEDDINGS_ENDPOINT, response_class=Response, responses=response_docs(EmbeddingList))
async def create_embeddings(
    request: Request,
    document: JsonDocument[EmbeddingBody],
    submissions: SubmissionBuilderDep,
    live_jobs: LiveJobsDep,
) -> Response:
    """A vector for each input, of a model with `embeddings: true` in its file."""
    submission = await submissions.build(document, EMBEDDINGS_ENDPOINT)
    return await respond_with_chunks(request, live_jobs, submission)
