"""Clerk metrics: what a clerk records of its own work."""

from __future__ import annotations

from typing import Final

from workers.runtime.recorder import Metric

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

TASK_SECONDS: Final = Metric(
    "millrace_clerk_task_seconds", "Time of a task: prepare, finalize or validate.", ("task",), _SECONDS
)
TASK_FAILURES: Final = Metric(
    "millrace_clerk_task_failures", "Tasks that an error ended; they are tried again.", ("task",)
)
SWEEP_SECONDS: Final = Metric("millrace_sweep_seconds", "Time of a sweep.", (), _SECONDS)
WEBHOOK_ATTEMPTS: Final = Metric(
    "millrace_webhook_attempts", "Attempts to deliver an event: delivered, failed or given_up.", ("outcome",)
)

CLERK_METRICS: Final = (TASK_SECONDS, TASK_FAILURES, SWEEP_SECONDS, WEBHOOK_ATTEMPTS)
