-- How many replicas of a class of workers the waiting work is worth; KEDA asks for it. Open chats and lines of batches that may run
-- count by what one replica works on at a time; a model that an admin has asked to load or has pinned counts as one replica.
SELECT (
  (
    (SELECT count(*) FROM jobs WHERE state = 'queued' AND batch_id IS NULL {{ .only }})
    + (SELECT count(*) FROM jobs WHERE state = 'running' AND batch_id IS NULL {{ .only }})
  ) / {{ .chats }}.0
  + (
    SELECT coalesce(sum(shards.lines - shards.lines_completed - shards.lines_failed), 0)
    FROM shards JOIN batches ON batches.id = shards.batch_id
    WHERE batches.status = 'in_progress' AND batches.paused_at IS NULL AND shards.state <> 'done' {{ .only | replace "model IN" "shards.model IN" }}
  ) / {{ .lines }}.0
  + (
    SELECT count(*) FROM model_requests
    WHERE (load_at > now() - interval '1 hour' OR pinned_at IS NOT NULL) {{ .only }}
  )
)::float8
