"""Error handlers: every failure is sent as OpenAI's error envelope. FastAPI's own handlers lose its fields, or echo a prompt."""

from __future__ import annotations

import math
from typing import Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.http.open_files import EXHAUSTED
from api.http.unknown_paths import unknown_path, wrong_method
from core.errors import OPERATORS_FAULT, ApiError, Problem, unavailable
from core.files.file_store import FileStoreUnavailable
from db.connections import is_transient

log = structlog.get_logger()

_RETRY_SECONDS: Final = 5  # of a failure that passes by itself

TOO_LARGE: Final = Problem(
    status=413, message="The request body is larger than this server takes.", code="request_too_large"
)


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """The envelope, with headers that the SDKs obey: no retry where it cannot help, and the time until one of a 429 or 503."""
    is_final = problem.status in (400, 409) or problem.code in OPERATORS_FAULT
    extra = {"x-should-retry": "false"} if is_final else {}
    if problem.retry_seconds is not None:
        extra = {"Retry-After": str(math.ceil(problem.retry_seconds))}
    elif problem.status == 503:
        extra = {"Retry-After": str(_RETRY_SECONDS)}
    return JSONResponse(problem.envelope(), problem.status, {**extra, **(headers or {})})


def install_error_handlers(app: FastAPI) -> None:
    """Replace the framework's handlers; `UnexpectedErrors` of `api.middleware` answers all other exceptions."""

    @app.exception_handler(ApiError)
    async def on_api_error(_: Request, error: ApiError) -> JSONResponse:
        return problem_response(error.problem, error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = str(first["loc"][1])  # behind the part of the request, before a position in a list
        message = f"Invalid value for '{param}': {first['msg']}."
        return problem_response(Problem(status=400, message=message, code="invalid_value", param=param))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        match error.status_code:
            case 404:
                return problem_response(unknown_path(request))
            case 405:
                return problem_response(*wrong_method(request))
            case 413:
                return problem_response(TOO_LARGE)
        return problem_response(Problem(status=error.status_code, message=str(error.detail)))

    @app.exception_handler(ClientDisconnect)
    async def on_client_gone(_: Request, __: ClientDisconnect) -> JSONResponse:
        """Count a body that was cut off as the client's failure; the response is not sent."""
        return problem_response(Problem(status=400, message="The body was cut off.", code="client_disconnected"))

    @app.exception_handler(SQLAlchemyError)
    async def on_database_error(_: Request, error: SQLAlchemyError) -> JSONResponse:
        if not is_transient(error):
            raise error
        log.warning("database_unavailable", reason=type(getattr(error, "orig", error)).__name__)
        away = unavailable("The database does not answer. Nothing was lost; try again shortly.")
        return problem_response(away.problem)

    @app.exception_handler(FileStoreUnavailable)
    async def on_file_store_error(_: Request, error: FileStoreUnavailable) -> JSONResponse:
        """The client reads no address of the storage; the log has it."""
        log.warning("file_store_unavailable", reason=error.problem)
        away = unavailable("The file store does not answer. Nothing was lost; try again shortly.")
        return problem_response(away.problem)

    @app.exception_handler(OSError)
    async def on_os_error(request: Request, error: OSError) -> JSONResponse:
        if error.errno not in EXHAUSTED:
            raise error
        log.warning("too_many_open_files", route=request.url.path)
        busy = unavailable("The server has too many files open. Nothing was lost; try again shortly.")
        return problem_response(busy.problem)
