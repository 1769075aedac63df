"""Schemas of `/v1/webhook_endpoints`, and of the events that are sent to endpoints.

Names and fields are those of the official client's `webhooks` resource; `failing_since`, `last_error`,
`events_delivered` and `events_given_up` are extensions.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

from pydantic import AfterValidator, Field

from core.schemas.base import RequestModel
from core.schemas.objects import ResponseModel

EventType = Literal[
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "response.completed",
    "response.failed",
    "response.cancelled",
    "response.incomplete",
]
EVENT_TYPES: Final[tuple[EventType, ...]] = get_args(EventType)

DeliveryState = Literal["waiting", "retrying", "delivered", "given_up"]


def _without_repeats(types: list[EventType]) -> list[EventType]:
    return list(dict.fromkeys(types))


EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=64), AfterValidator(_without_repeats)]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Url = Annotated[str, Field(min_length=1, max_length=2048)]


class WebhookCreate(RequestModel):
    """Body of `POST /v1/webhook_endpoints`."""

    event_types: EventTypes
    name: Name
    url: Url


class WebhookUpdate(RequestModel):
    """Body of `POST /v1/webhook_endpoints/{id}`: fields that are left out do not change."""

    event_types: EventTypes | None = None
    name: Name | None = None
    url: Url | None = None


class WebhookRotate(RequestModel):
    """Body of `POST /v1/webhook_endpoints/{id}/rotate_secret`."""

    keep_old_secret_active_for_24_hours: bool = False


class WebhookTest(RequestModel):
    """Body of `POST /v1/webhook_endpoints/{id}/test`."""

    event_type: EventType


class EventSubject(ResponseModel):
    """The object of an event: a batch, or a response in the background."""

    id: str


class WebhookEndpointObject(ResponseModel):
    """An endpoint. `last_error` is the reason of the latest failure; a success sets it and `failing_since` to null.

    `events_given_up` counts events that were not delivered in time.
    """

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    failing_since: int | None = None
    last_error: str | None = None
    events_delivered: int = 0
    events_given_up: int = 0


class WebhookEndpointWithSecret(WebhookEndpointObject):
    """An endpoint after its creation or a rotation, the only responses with the secret."""

    signing_secret: str = Field(repr=False)


class WebhookEndpointList(ResponseModel):
    """A page of endpoints, newest first."""

    object: Literal["list"] = "list"
    data: list[WebhookEndpointObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class WebhookDeliveryObject(ResponseModel):
    """The delivery of an event to an endpoint; `id` is the event's, which its receiver gets as `webhook-id`.

    `status_code` and `last_error` are of the latest attempt; `next_attempt_at` is null once it has ended.
    """

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    event_type: str
    data: EventSubject
    state: DeliveryState
    is_test: bool
    attempts: int
    next_attempt_at: int | None
    status_code: int | None
    last_error: str | None
    created_at: int
    finished_at: int | None


class WebhookEventTypeList(ResponseModel):
    """The types of events that an endpoint can subscribe to."""

    object: Literal["list"] = "list"
    data: list[str]


class WebhookTestResult(ResponseModel):
    """The endpoint answered a sample event, with any status."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class WebhookEvent(ResponseModel):
    """An event. It has only the id of its object, since events may arrive late, twice and out of order."""

    id: str
    object: Literal["event"] = "event"
    type: EventType
    created_at: int
    data: EventSubject
