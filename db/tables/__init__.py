"""The tables, with CHECKs for the invariants of their rows."""

from db.tables.base import Base
from db.tables.batches import Batch, Shard, Validation
from db.tables.files import UPLOAD_STATUSES, File, Upload, UploadPart
from db.tables.jobs import Job, Quarantine, Response, StoredChat
from db.tables.tenants import DEFAULT_TENANT, ApiKey, IdempotencyKey, Tenant, UsageDaily
from db.tables.webhooks import Webhook, WebhookDelivery
from db.tables.workers import WORKER_KINDS, Counter, EngineCrash, ModelLoad, ModelRequest, Worker, WorkerEngine

__all__ = [
    "DEFAULT_TENANT",
    "UPLOAD_STATUSES",
    "WORKER_KINDS",
    "ApiKey",
    "Base",
    "Batch",
    "Counter",
    "EngineCrash",
    "File",
    "IdempotencyKey",
    "Job",
    "ModelLoad",
    "ModelRequest",
    "Quarantine",
    "Response",
    "Shard",
    "StoredChat",
    "Tenant",
    "Upload",
    "UploadPart",
    "UsageDaily",
    "Validation",
    "Webhook",
    "WebhookDelivery",
    "Worker",
    "WorkerEngine",
]
