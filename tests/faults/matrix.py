"""The tests that prove each row of the matrix of faults: `python -m tests.faults.matrix` prints the table.

Besides, `test_failpoints` passes every failpoint, and `chaos` draws from all of them.
"""

from __future__ import annotations

import sys
from typing import Final

_HERE: Final = "tests/faults/"
_FAILPOINTS: Final = _HERE + "test_failpoints.py::test_nothing_is_lost_or_doubled_when_a_process_ends_at"
_KILLS: Final = "tests/e2e/test_kills.py::test_a_kill_during_a_batch_loses_and_doubles_nothing"
_CHAOS: Final = _HERE + "test_chaos.py::test_nothing_is_lost_in_a_minute_of_chaos"
_STOPS: Final = _HERE + "test_signals.py::test_a_worker_stops_within_its_deadline"
_ENGINE: Final = _HERE + "test_engines.py::test_lines_that_crash_the_engine_fail_alone"
_NO_BROKER: Final = _HERE + "test_broker.py::test_without_a_broker_batches_end_and_requests_are_answered_in_time"
_LOSES: Final = _HERE + "test_broker.py::test_a_broker_that_loses_everything_only_delays_work"
_NO_REPLY: Final = _HERE + "test_database.py::test_a_create_committed_without_a_reply_succeeds_and_exists_once"
_CANCEL: Final = _HERE + "test_lifecycle.py::test_a_cancel_that_comes_at"

ROWS: Final[dict[str, tuple[str, ...]]] = {
    "F1": (
        _KILLS,
        _HERE + "test_successors.py::test_shards_of_a_dead_consumer_are_taken_over_before_their_leases_expire",
    ),
    "F2": (_CHAOS, _KILLS),
    "F3": (_STOPS,),
    "F4": (_STOPS,),
    "F5": (_HERE + "test_signals.py::test_a_second_signal_stops_a_worker_at_once",),
    "F6": (_STOPS, _HERE + "test_signals.py::test_a_worker_that_is_still_starting_stops_too"),
    "F7": (_STOPS, _HERE + "test_signals.py::test_an_api_and_a_clerk_stop_within_their_deadline"),
    "F8": (_HERE + "test_signals.py::test_a_worker_frozen_for_longer_than_its_lease_writes_nothing_afterwards",),
    "F9": (
        _ENGINE,
        "tests/e2e/test_poison.py::test_five_poison_lines_of_a_thousand_fail_alone_within_fifteen_restarts",
    ),
    "F10": (_ENGINE,),
    "F11": (_ENGINE,),
    "F12": (_HERE + "test_engines.py::test_a_poison_stream_gets_an_error_at_once_and_is_not_run_again",),
    "F13": (
        _ENGINE,
        "tests/unit/engine/process/test_watchdog.py::test_something_that_does_not_end_is_found_at_its_own_limit",
    ),
    "F14": (_HERE + "test_engines.py::test_a_step_that_fails_in_python_fails_its_line_and_keeps_the_engine",),
    "F15": (
        _ENGINE,
        _HERE + "test_engines.py::test_an_engine_without_enough_memory_is_replaced_and_its_lines_are_answered",
    ),
    "F16": (
        _HERE + "test_model_files.py::test_models_with_missing_or_truncated_files_are_named_and_the_others_are_served",
        _HERE + "test_model_files.py::test_without_any_model_it_exits_with_a_message_that_names_the_file",
    ),
    "F17": (_LOSES,),
    "F18": (_NO_BROKER,),
    "F19": (_NO_BROKER,),
    "F20": (_NO_BROKER, _HERE + "test_broker.py::test_a_half_open_connection_is_given_up"),
    "F21": (_LOSES,),
    "F22": (_HERE + "test_broker.py::test_a_full_broker_refuses_tickets_and_nothing_else_breaks",),
    "F23": (_HERE + "test_broker.py::test_a_stream_survives_the_loss_of_its_subscription",),
    "F24": (_HERE + "test_broker.py::test_consumers_that_get_no_tickets_find_their_work_by_polling",),
    "F25": (_HERE + "test_tickets.py::test_a_ticket_delivered_twenty_times_is_executed_once",),
    "F26": (_HERE + "test_tickets.py::test_malformed_messages_are_dropped_and_the_consumer_keeps_running",),
    "F27": (
        "tests/service/db/test_lease_policy.py::test_of_two_who_race_for_a_job_one_wins_a_thousand_times",
        "tests/service/db/test_lease_policy.py::test_of_two_who_race_for_a_shard_one_wins_a_thousand_times",
    ),
    "F28": (_HERE + "test_database.py::test_a_database_that_stops_during_a_commit_has_all_of_it_or_nothing",),
    "F29": (
        _HERE + "test_database.py::test_without_a_database_requests_get_a_503_with_retry_after",
        _HERE + "test_database.py::test_a_stream_survives_a_short_loss_of_the_database",
    ),
    "F30": (_HERE + "test_database.py::test_terminated_connections_cost_one_retry_at_most",),
    "F31": (_NO_REPLY, _HERE + "test_database.py::test_results_that_were_committed_without_a_reply_count_once"),
    "F32": (_HERE + "test_database.py::test_a_locked_table_delays_requests_for_no_longer_than_the_lock_timeout",),
    "F33": (_HERE + "test_database.py::test_a_database_without_a_free_connection_refuses_in_time_and_leases_are_kept",),
    "F34": (_HERE + "test_database.py::test_a_transaction_ended_by_a_deadlock_is_retried",),
    "F35": (_HERE + "test_clients.py::test_an_upload_whose_api_is_killed_leaves_nothing",),
    "F36": (_HERE + "test_clients.py::test_an_upload_whose_client_disconnects_leaves_nothing",),
    "F37": (_FAILPOINTS,),
    "F38": (_FAILPOINTS,),
    "F39": (_HERE + "test_clients.py::test_a_client_that_disconnects_stops_its_job_and_leaves_nothing_behind",),
    "F40": (_HERE + "test_clients.py::test_a_client_that_never_reads_is_dropped_and_others_are_not_affected",),
    "F41": (
        _HERE + "test_full.py::test_a_full_disk_under_the_file_store_and_the_logs_refuses_uploads_and_loses_nothing",
    ),
    "F42": (
        _HERE + "test_full.py::test_a_full_disk_under_the_database_is_a_503_and_work_resumes_when_there_is_room",
        _HERE + "test_full.py::test_a_bundled_postgres_that_stops_on_a_full_disk_is_restarted_when_there_is_room",
    ),
    "F43": (
        _HERE + "test_full.py::test_connections_beyond_the_file_limit_get_a_503",
        _HERE + "test_full.py::test_an_api_without_free_file_descriptors_returns_503_and_recovers",
    ),
    "F44": (
        _HERE + "test_clocks.py::test_a_worker_clock_that_is_wrong_by_an_hour_does_not_affect_its_leases",
        _HERE + "test_clocks.py::test_wall_clocks_are_read_only_where_no_lease_depends_on_them",
    ),
    "F45": (_HERE + "test_lifecycle.py::test_an_expired_batch_keeps_its_finished_lines",),
    "F46": (_CANCEL, _HERE + "test_lifecycle.py::test_a_running_batch_that_is_cancelled_keeps_its_finished_lines"),
    "F47": (_HERE + "test_broker.py::test_a_cancel_without_a_broker_takes_one_heartbeat",),
    "F48": (_HERE + "test_lifecycle.py::test_another_clerk_takes_over_the_sweep",),
    "F49": (_HERE + "test_schema.py::test_an_old_process_refuses_a_newer_schema_with_advice",),
    "F50": (_HERE + "test_lifecycle.py::test_an_input_file_deleted_during_preparation_is_still_read_to_its_end",),
    "F51": (_HERE + "test_clients.py::test_a_revoked_key_ends_its_streams_and_its_batches_finish",),
    "F52": (_HERE + "test_signals.py::test_a_stack_resumes_after_all_its_processes_were_killed",),
}

if __name__ == "__main__":
    sys.stdout.write("".join(f"{row}\t{', '.join(tests)}\n" for row, tests in ROWS.items()))
