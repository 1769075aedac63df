"""The tests that prove each rule of SECURITY.md, wherever they are. `python -m tests.security.rules` prints the table.

This folder holds the tests that fit into no other folder.
"""

from __future__ import annotations

import sys
from typing import Final

RULES: Final[dict[str, tuple[str, ...]]] = {
    "templates run in a sandbox with limits of time and output; a request cannot bring one": (
        "tests/unit/engine/inputs/test_chat_template.py::test_a_hostile_template_only_hurts_its_own_requests",
        "tests/unit/core/schemas/test_chat_body.py::test_a_bad_body_is_a_400_that_names_the_field",
    ),
    "tables and the templates of a mapping are read in a process with limits, which knows nothing of the api": (
        "tests/unit/api/test_table_processes.py::test_a_hostile_template_is_over_in_a_moment",
        "tests/unit/api/test_table_processes.py::test_a_zip_bomb_ends_at_the_memory_limit",
        "tests/unit/api/test_table_processes.py::test_a_child_has_no_secret_of_the_api_and_its_limits",
        "tests/unit/api/test_table_processes.py::test_a_request_that_is_given_up_leaves_no_child",
        "tests/service/api/batches/test_batch_tables.py::test_a_client_that_leaves_ends_its_child",
    ),
    "no text of a request becomes a control token": (
        "tests/unit/engine/inputs/test_chat_template.py::test_no_text_of_a_request_becomes_a_control_token",
        "tests/unit/engine/inputs/test_special_text.py::test_a_text_that_the_marks_change_gets_no_control_token",
        "tests/unit/engine/inputs/test_prompt_encoder.py::test_parts_that_spell_a_control_token_together_do_not_become_one",
        "tests/service/api/generation/test_completions_of_a_model.py::test_the_spelling_of_a_special_token_is_text_in_a_completion",
    ),
    "schemas and grammars are compiled in a process of their own, which may crash": (
        "tests/unit/engine/structured/test_grammar_limits.py::test_a_harmful_constraint_is_rejected_and_the_next_one_compiles",
        "tests/unit/engine/structured/test_grammar_limits.py::test_a_crashed_helper_is_replaced",
    ),
    "every number and list has a bound, every token id is in the vocabulary": (
        "tests/unit/core/schemas/test_chat_body.py::test_a_bad_body_is_a_400_that_names_the_field",
        "tests/unit/engine/inputs/test_chat_template.py::test_a_bias_of_a_token_the_model_does_not_have_is_refused",
        "tests/hostile_input/test_chat_parameters.py::test_an_invalid_field_is_a_400_that_names_it",
    ),
    "a prefix is shared within a tenant only": (
        "tests/security/test_crosstalk.py::test_a_prefix_cached_for_one_tenant_is_prefilled_again_for_another",
        "tests/unit/engine/scheduler/test_scheduler.py::test_a_prefix_is_not_shared_between_tenants",
        "tests/unit/engine/backends/test_memory_kinds.py::test_another_tenant_reuses_nothing",
    ),
    "text of one tenant is in no response to another": (
        "tests/security/test_crosstalk.py::test_a_secret_of_one_tenant_is_in_no_answer_to_another_while_both_are_served",
    ),
    "an id of another tenant is an id that does not exist, on every route": (
        "tests/service/api/access/test_isolation.py::test_an_id_of_another_tenant_is_an_unknown_id",
        "tests/service/api/access/test_isolation.py::test_a_list_holds_nothing_of_others_wherever_it_starts",
        "tests/service/api/access/test_isolation.py::test_objects_outlive_the_attempts_of_another_tenant",
    ),
    "a key sees the load of the models that it may use, in sums over all tenants, and no more of these": (
        "tests/service/api/test_activity.py::test_all_tenants_see_the_same_sums_and_no_id_of_another",
        "tests/service/api/test_activity.py::test_a_key_for_some_models_sees_only_these_and_not_where_others_are",
        "tests/service/api/test_activity.py::test_keys_for_inference_and_for_reading_see_it",
        "tests/browser/test_models.py::test_a_key_for_reading_sees_no_buttons_and_text_from_elsewhere_is_only_text",
    ),
    "every route asks for a key and a scope, whatever the Host header says": (
        "tests/service/api/access/test_isolation.py::test_no_route_answers_without_a_key",
        "tests/service/api/access/test_isolation.py::test_every_route_declares_its_scope",
        "tests/hostile_input/test_http.py::test_a_host_header_never_bypasses_authentication",
    ),
    "keys are 256 random bits, kept as digests, found by digest, revoked within seconds": (
        "tests/unit/core/test_api_keys.py::test_a_key_is_hard_to_guess_and_not_printed_by_accident",
        "tests/service/api/access/test_key_ring.py::test_all_invalid_keys_get_the_same_answer_for_the_same_work",
        "tests/service/api/access/test_key_ring.py::test_a_revoked_key_stops_working_within_the_cache_time",
        "tests/service/api/access/test_api_keys.py::test_a_revoked_key_is_refused_at_once",
        "tests/service/cli/test_keys.py::test_a_key_is_printed_once_and_only_its_digest_is_stored",
        "tests/service/api/access/test_keys.py::test_a_batch_that_a_key_began_is_finished_when_it_is_revoked",
        "tests/service/api/access/test_keys.py::test_a_remote_address_that_tries_keys_is_limited_and_no_other_client",
    ),
    "a key gives no more than it has; its secret is in one response; only a program of this machine creates the first one": (
        "tests/service/api/access/test_api_keys.py::test_a_key_gives_no_more_than_it_has",
        "tests/service/api/access/test_api_keys.py::test_a_key_that_expires_gives_no_longer_life",
        "tests/service/api/access/test_api_keys.py::test_a_key_that_was_revoked_elsewhere_creates_no_other",
        "tests/service/api/access/test_api_keys.py::test_a_repeated_create_makes_one_key_and_does_not_repeat_its_secret",
        "tests/service/api/access/test_api_keys.py::test_a_secret_in_place_of_an_id_is_not_repeated_or_logged",
        "tests/service/api/access/test_api_keys.py::test_only_a_program_of_this_machine_creates_the_first_key",
        "tests/service/api/access/test_api_keys.py::test_of_two_first_keys_one_is_created",
    ),
    "nothing that a request names is fetched": (
        "tests/hostile_input/test_chat_parameters.py::test_nothing_that_a_request_names_is_fetched",
        "tests/unit/engine/structured/test_grammar_limits.py::test_a_harmful_constraint_is_rejected_and_the_next_one_compiles",
    ),
    "webhooks go to named hosts and public addresses only, resolved once, without redirects": (
        "tests/unit/core/test_url_guard.py::test_",
        "tests/unit/workers/maintenance/test_webhook_sender.py::test_sockets_of_this_machine_are_not_connected",
        "tests/unit/workers/maintenance/test_webhook_sender.py::test_a_redirect_is_a_failure_and_is_not_followed",
        "tests/unit/workers/maintenance/test_webhook_sender.py::test_a_name_is_resolved_once_and_the_checked_address_is_connected",
        "tests/service/api/test_webhooks.py::test_without_named_hosts_webhooks_are_off",
    ),
    "the key of a server upstream is in the environment only, and goes to the addresses of model files without redirects": (
        "tests/e2e/test_upstream.py::test_the_model_is_listed_with_its_backend_and_no_secret_is_shown",
        "tests/service/engine/test_upstream_server.py::test_the_key_is_sent_and_appears_nowhere_else",
        "tests/service/engine/test_upstream_server.py::test_a_redirect_is_not_followed",
        "tests/service/engine/test_upstream_server.py::test_a_name_that_leads_to_a_metadata_service_is_refused",
        "tests/unit/core/models/test_upstream_fields.py::test_a_wrong_key_is_named_with_the_remedy",
        "tests/unit/core/models/test_upstream_fields.py::test_a_missing_or_broken_secret_is_named_without_its_value",
        "tests/unit/workers/generation/test_forward.py::test_an_error_of_the_server_is_the_callers_only_where_the_request_is_the_cause",
    ),
    "names of files in the models folder are shown as printable text, and reach nothing outside it": (
        "tests/unit/core/models/test_live_catalog.py::test_a_file_name_that_is_no_model_name_is_reported_in_printable_text",
        "tests/unit/core/models/test_live_catalog.py::test_a_hostile_yaml_file_is_a_problem_like_any_other",
        "tests/service/api/test_hot_reload.py::test_a_broken_file_changes_nothing_but_a_line_in_readyz",
        "tests/unit/cli/test_models.py::test_a_name_that_is_no_model_removes_nothing",
        "tests/unit/cli/test_models.py::test_weights_that_something_else_uses_or_that_are_elsewhere_stay",
    ),
    "names never become paths; files are private, new, and no links": (
        "tests/unit/core/test_file_store.py::test_names_that_are_no_ids_never_become_paths",
        "tests/unit/core/test_file_store.py::test_content_is_private",
        "tests/security/test_attack_surface.py::test_a_symlink_in_place_of_a_stored_file_is_not_followed",
    ),
    "text of clients and models is only text on the page, which runs and loads its own files alone": (
        "tests/browser/test_batch.py::test_hostile_text_is_shown_as_text",
        "tests/browser/test_batches.py::test_states_are_plain_words_and_hostile_text_is_text",
        "tests/browser/test_models.py::test_a_key_for_reading_sees_no_buttons_and_text_from_elsewhere_is_only_text",
        "tests/unit/api/test_web.py::test_the_page_allows_only_its_own_files",
        "tests/unit/api/test_web.py::test_the_page_has_no_inline_code_and_no_address_elsewhere",
    ),
    "no form, page or cookie of a browser has an effect": (
        "tests/hostile_input/test_http.py::test_a_body_that_a_form_could_send_is_a_415_without_effect",
        "tests/security/test_attack_surface.py::test_no_other_origin_may_read_a_response",
        "tests/security/test_attack_surface.py::test_no_cookie_is_set_or_accepted",
    ),
    "an id of a client is taken over only if it is short and plain": (
        "tests/hostile_input/test_http.py::test_an_unsafe_request_id_of_a_client_is_not_used",
    ),
    "bodies are bounded while they are read, and never inflated": (
        "tests/hostile_input/test_http.py::test_an_endless_body_is_refused_while_it_is_read_with_flat_memory",
        "tests/hostile_input/test_http.py::test_a_gzip_bomb_is_never_inflated",
        "tests/hostile_input/test_http.py::test_unusual_ranges_return_content_or_a_416",
    ),
    "a message carries an id; pickles and malformed messages are refused": (
        "tests/security/test_attack_surface.py::test_a_pickled_message_is_not_run_and_the_next_message_is_served",
    ),
    "prompts, answers, file names, keys and addresses are in no log, metric or error": (
        "tests/security/test_log_privacy.py::test_no_log_contains_text_of_a_client",
        "tests/security/test_log_privacy.py::test_no_log_contains_a_key_or_the_address_of_a_service",
        "tests/security/test_log_privacy.py::test_no_error_repeats_text_of_the_request",
        "tests/security/test_log_privacy.py::test_the_bundled_postgres_logs_errors_without_rows_and_statements",
        "tests/service/api/test_webhooks.py::test_no_log_has_a_secret",
    ),
    "processes write private files, dump no core, and listen on one port": (
        "tests/security/test_processes.py::test_no_process_can_dump_its_memory",
        "tests/security/test_processes.py::test_every_process_has_a_umask_of_077",
        "tests/security/test_processes.py::test_no_file_of_a_stack_is_open_to_other_users",
        "tests/security/test_processes.py::test_sockets_are_in_a_private_directory_and_only_the_api_listens",
    ),
    "listening on a public address needs a key": (
        "tests/service/api/access/test_key_ring.py::test_listening_on_other_addresses_needs_a_key_or_the_setting",
        "tests/service/cli/test_keys.py::test_a_server_beyond_loopback_does_not_start_without_a_key",
    ),
    "data past its retention is removed": (
        "tests/service/workers/batches/test_clerk.py::test_a_deleted_file_keeps_its_bytes_until_its_batch_has_ended",
        "tests/service/workers/maintenance/test_retention.py::test_",
    ),
}

if __name__ == "__main__":
    sys.stdout.write("".join(f"{rule}\n    {name}\n" for rule, names in RULES.items() for name in names))
