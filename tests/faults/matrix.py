"""The tests that prove each row of the matrix of faults: `python -m tests.faults.matrix` prints the table.

Besides, `test_failpoints` passes every failpoint, and `chaos` draws from all of them.
"""

from __future__ import annotations

import sys
from typing import Final

_HERE: Final = "tests/faults/"
_FAILPOINTS: Final = _HERE + "test_failpoints.py::test_nothing_is_lost_or_doubled_when_it_ends_at"
_KILLS: Final = "tests/e2e/test_kills.py::test_a_kill_in_mid_batch_loses_and_doubles_nothing"
_CHAOS: Final = _HERE + "test_chaos.py::test_nothing_is_lost_in_a_minute_of_chaos"
_LEAVES: Final = _HERE + "test_signals.py::test_a_worker_leaves_within_its_deadline"
_ENGINE: Final = _HERE + "test_engines.py::test_lines_that_end_the_engine_fail_alone"
_NO_BROKER: Final = _HERE + "test_broker.py::test_without_a_broker_batches_end_and_requests_are_answered_in_time"
_FORGETS: Final = _HERE + "test_broker.py::test_a_broker_that_forgets_everything_delays_and_no_more"
_NO_REPLY: Final = _HERE + "test_database.py::test_what_was_committed_without_a_reply_is_given_and_there_once"
_CANCEL: Final = _HERE + "test_lifecycle.py::test_a_cancel_that_comes_at"

ROWS: Final[dict[str, tuple[str, ...]]] = {
    "F1": (_KILLS, _HERE + "test_successors.py::test_shards_of_a_dead_consumer_need_not_wait_for_their_leases"),
    "F2": (_CHAOS, _KILLS),
    "F3": (_LEAVES,),
    "F4": (_LEAVES,),
    "F5": (_HERE + "test_signals.py::test_a_second_signal_hurries_a_worker",),
    "F6": (_LEAVES, _HERE + "test_signals.py::test_a_worker_that_has_not_started_yet_leaves_too"),
    "F7": (_LEAVES, _HERE + "test_signals.py::test_an_api_and_a_clerk_leave_within_their_deadline"),
    "F8": (
        _HERE + "test_signals.py::test_a_worker_that_stood_still_for_longer_than_its_lease_writes_nothing_any_more",
    ),
    "F9": (
        _ENGINE,
        "tests/e2e/test_poison.py::test_five_poison_lines_of_a_thousand_fail_alone_within_fifteen_restarts",
    ),
    "F10": (_ENGINE,),
    "F11": (_ENGINE,),
    "F12": (_HERE + "test_engines.py::test_a_poison_stream_is_told_at_once_and_not_run_again",),
    "F13": (_ENGINE, "tests/unit/engine/test_watchdog.py::test_an_iteration_that_does_not_return_is_found"),
    "F14": (_HERE + "test_engines.py::test_a_step_that_fails_in_python_costs_its_line_and_no_engine",),
    "F15": (
        _ENGINE,
        _HERE
        + "test_engines.py::test_an_engine_that_may_not_have_the_memory_it_needs_is_replaced_and_its_lines_are_answered",
    ),
    "F16": (
        _HERE
        + "test_model_files.py::test_models_whose_files_are_missing_or_cut_short_are_named_and_the_others_are_served",
        _HERE + "test_model_files.py::test_with_no_model_left_it_ends_with_a_message_that_names_the_file",
    ),
    "F17": (_FORGETS,),
    "F18": (_NO_BROKER,),
    "F19": (_NO_BROKER,),
    "F20": (_NO_BROKER, _HERE + "test_broker.py::test_a_connection_that_is_only_half_there_is_given_up"),
    "F21": (_FORGETS,),
    "F22": (_HERE + "test_broker.py::test_a_broker_that_is_full_refuses_tickets_and_nothing_else_happens",),
    "F23": (_HERE + "test_broker.py::test_a_stream_outlives_the_subscription_it_came_by",),
    "F24": (_HERE + "test_broker.py::test_consumers_that_hear_no_ticket_work_all_the_same",),
    "F25": (_HERE + "test_tickets.py::test_a_ticket_that_comes_twenty_times_is_one_execution",),
    "F26": (_HERE + "test_tickets.py::test_rubbish_in_a_queue_is_thrown_away_and_the_consumer_lives",),
    "F27": (
        "tests/service/db/test_lease_policy.py::test_of_two_who_race_for_a_job_one_wins_a_thousand_times",
        "tests/service/db/test_lease_policy.py::test_of_two_who_race_for_a_shard_one_wins_a_thousand_times",
    ),
    "F28": (_HERE + "test_database.py::test_a_database_that_stops_in_the_middle_of_a_commit_has_all_of_it_or_nothing",),
    "F29": (
        _HERE + "test_database.py::test_while_there_is_no_database_requests_are_told_to_come_again",
        _HERE + "test_database.py::test_a_stream_outlives_a_moment_without_a_database",
    ),
    "F30": (_HERE + "test_database.py::test_connections_that_are_ended_cost_one_retry_at_most",),
    "F31": (_NO_REPLY, _HERE + "test_database.py::test_results_that_were_committed_without_a_reply_count_once"),
    "F32": (_HERE + "test_database.py::test_a_locked_table_holds_nobody_up_for_long",),
    "F33": (_HERE + "test_database.py::test_a_database_without_a_free_connection_refuses_in_time_and_leases_are_kept",),
    "F34": (_HERE + "test_database.py::test_whoever_is_ended_for_a_deadlock_tries_again",),
    "F35": (_HERE + "test_clients.py::test_an_upload_that_an_api_dies_under_leaves_nothing",),
    "F36": (_HERE + "test_clients.py::test_an_upload_whose_client_leaves_leaves_nothing",),
    "F37": (_FAILPOINTS,),
    "F38": (_FAILPOINTS,),
    "F39": (_HERE + "test_clients.py::test_a_reader_that_leaves_stops_its_job_and_leaves_nothing_behind",),
    "F40": (_HERE + "test_clients.py::test_a_client_that_never_reads_is_dropped_and_others_do_not_notice",),
    "F41": (
        _HERE + "test_full.py::test_a_full_disk_under_the_file_store_and_the_logs_refuses_uploads_and_loses_nothing",
    ),
    "F42": (
        _HERE + "test_full.py::test_a_full_disk_under_the_database_is_a_503_and_everything_goes_on_when_there_is_room",
        _HERE + "test_full.py::test_a_bundled_postgres_that_dies_on_a_full_disk_is_started_again_when_there_is_room",
    ),
    "F43": (
        _HERE + "test_full.py::test_more_connections_than_there_are_files_for_get_a_503",
        _HERE + "test_full.py::test_an_api_without_a_file_left_to_open_says_503_and_recovers",
    ),
    "F44": (
        _HERE + "test_clocks.py::test_an_hour_more_or_less_on_a_workers_clock_changes_nothing_about_its_leases",
        _HERE + "test_clocks.py::test_a_machine_is_asked_the_time_only_where_no_lease_depends_on_it",
    ),
    "F45": (_HERE + "test_lifecycle.py::test_a_batch_whose_time_is_over_keeps_what_is_done",),
    "F46": (_CANCEL, _HERE + "test_lifecycle.py::test_a_running_batch_that_is_cancelled_keeps_what_is_done"),
    "F47": (_HERE + "test_broker.py::test_a_cancel_without_a_broker_takes_a_heartbeat",),
    "F48": (_HERE + "test_lifecycle.py::test_another_clerk_takes_over_the_sweep",),
    "F49": (_HERE + "test_schema.py::test_an_old_process_refuses_a_newer_schema_and_says_what_to_do",),
    "F50": (_HERE + "test_lifecycle.py::test_an_input_file_that_is_deleted_is_read_to_its_end",),
    "F51": (_HERE + "test_clients.py::test_a_revoked_key_ends_its_streams_and_its_batches_finish",),
    "F52": (_HERE + "test_signals.py::test_a_stack_whose_every_process_was_killed_resumes_when_it_is_started_again",),
}

if __name__ == "__main__":
    sys.stdout.write("".join(f"{row}\t{', '.join(tests)}\n" for row, tests in ROWS.items()))
