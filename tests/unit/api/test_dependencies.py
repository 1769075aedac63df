"""Dependencies of the routes."""

from __future__ import annotations

import inspect

from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from api.app import create_app
from core.settings import Settings


def flat(dependant: Dependant) -> list[Dependant]:
    return [dependant, *(each for child in dependant.dependencies for each in flat(child))]


def test_no_dependency_runs_in_a_thread() -> None:
    """FastAPI calls plain functions and classes in its thread pool, which costs more than most requests."""
    for route in iter_route_contexts(create_app(Settings()).routes):
        if route.path is not None and route.path.startswith("/v1/"):
            for dependant in flat(route.dependant):
                call = dependant.call
                is_async = [
                    inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
                    for each in (call, type(call).__call__)
                ]
                assert any(is_async), (route.path, call)
