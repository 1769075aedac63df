"""Celery consumers of three kinds: chat, batch and clerk.

Celery delivers an id and nothing else. The database is the truth: a row holds the work, a lease its holder, and sweeps and polls
find the work of lost messages. So most features of Celery are off (each setting is in `core.queue.celery_app`):

* Messages are acknowledged when they arrive, and results are not kept. A worker that crashes loses its lease, not a message.
* There is no prefetch, so a message waits where a free thread of any process can take it. `celery_pool` wakes the consumer the
  moment a thread is free; without it each free thread would be noticed up to a second late.
* A second delivery of an id does no harm: a claim is one conditional UPDATE, and `dedup_executor` runs work that was found
  without a ticket once at a time.
* Celery's shutdown waits for threads without limit, and its soft shutdown and revocation do nothing on threads. `shutdown` ends
  the process within a deadline, and cancels come over a channel of Redis, which `workers.runtime.channel_listener` reads.
* Chat, batch and clerk are three processes, since long tasks would starve short ones in one pool of threads.
"""
