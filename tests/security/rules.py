"""Which test proves which rule of SECURITY.md, for rules that are proved where their subject is tested.

`python -m tests.security.rules` prints the table. What has no other home is in this folder.
"""

from __future__ import annotations

import sys
from typing import Final

RULES: Final[dict[str, tuple[str, ...]]] = {
    "templates run in a sandbox, for so long and so much; no request brings one": (
        "tests/unit/engine/test_chat_template.py::test_a_hostile_template_only_hurts_its_own_requests",
        "tests/unit/core/test_chat_body.py::test_a_bad_body_is_a_400_that_names_the_field",
    ),
    "no text of a request becomes a control token": (
        "tests/unit/engine/test_chat_template.py::test_no_text_of_a_request_becomes_a_control_token",
        "tests/service/api/test_completions_of_a_model.py::test_the_spelling_of_a_special_token_is_text_in_a_completion",
    ),
    "schemas and grammars are compiled in a process that may die of them": (
        "tests/unit/engine/test_grammar_limits.py::test_a_harmful_constraint_is_rejected_and_the_next_one_compiles",
        "tests/unit/engine/test_grammar_limits.py::test_a_crashed_helper_is_replaced",
    ),
    "every number and list has a bound, every token id is in the vocabulary": (
        "tests/unit/core/test_chat_body.py::test_a_bad_body_is_a_400_that_names_the_field",
        "tests/unit/engine/test_chat_template.py::test_a_bias_of_a_token_the_model_does_not_have_is_refused",
        "tests/hostile_input/test_chat_parameters.py::test_a_field_that_cannot_be_is_a_400_that_names_it",
    ),
    "a prefix is shared within a tenant only": (
        "tests/security/test_crosstalk.py::test_what_one_tenant_has_read_is_read_again_for_another",
        "tests/unit/engine/test_scheduler.py::test_a_prefix_is_not_shared_between_tenants",
        "tests/unit/engine/test_memory_kinds.py::test_another_tenant_reuses_nothing",
    ),
    "a tenant's words are in no answer to another": (
        "tests/security/test_crosstalk.py::test_a_secret_of_one_tenant_is_in_no_answer_to_another_while_both_are_served",
    ),
    "an id of another tenant is an id that does not exist, on every route": (
        "tests/service/api/test_isolation.py::test_an_id_of_another_tenant_is_an_unknown_id",
        "tests/service/api/test_isolation.py::test_a_list_holds_nothing_of_others_and_does_not_start_behind_it",
        "tests/service/api/test_isolation.py::test_what_a_stranger_tried_is_still_there",
    ),
    "every route asks for a key and a scope, whatever the Host header says": (
        "tests/service/api/test_isolation.py::test_no_route_answers_without_a_key",
        "tests/service/api/test_isolation.py::test_every_route_says_which_scope_it_needs",
        "tests/hostile_input/test_http.py::test_a_host_opens_no_door",
    ),
    "keys are 256 random bits, kept as digests, found by digest, revoked within seconds": (
        "tests/service/api/test_key_ring.py::test_a_key_is_hard_to_guess_and_not_printed_by_accident",
        "tests/service/api/test_key_ring.py::test_whatever_is_wrong_with_a_key_it_gets_the_same_answer_for_the_same_work",
        "tests/service/api/test_key_ring.py::test_a_revoked_key_ends_within_the_seconds_it_is_remembered",
        "tests/service/cli/test_keys.py::test_a_key_is_printed_once_and_only_its_digest_is_stored",
        "tests/service/api/test_keys.py::test_a_batch_that_a_key_began_is_finished_when_it_is_revoked",
        "tests/service/api/test_keys.py::test_who_tries_keys_from_elsewhere_is_slowed_down_and_nobody_else",
    ),
    "nothing that a request names is fetched": (
        "tests/hostile_input/test_chat_parameters.py::test_nothing_that_a_request_names_is_fetched",
        "tests/unit/engine/test_grammar_limits.py::test_a_harmful_constraint_is_rejected_and_the_next_one_compiles",
    ),
    "webhooks go to named hosts and public addresses only, resolved once, without redirects": (
        "tests/unit/core/test_url_guard.py::test_",
        "tests/unit/workers/test_webhook_sender.py::test_a_socket_of_this_machine_hears_nothing",
        "tests/unit/workers/test_webhook_sender.py::test_a_redirect_is_a_no_and_is_not_followed",
        "tests/unit/workers/test_webhook_sender.py::test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_looked_at",
        "tests/service/api/test_webhooks.py::test_without_named_hosts_webhooks_are_off",
    ),
    "names never become paths; files are private, new, and no links": (
        "tests/unit/core/test_file_store.py::test_names_that_are_not_ours_never_become_paths",
        "tests/unit/core/test_file_store.py::test_content_is_private",
        "tests/security/test_doors.py::test_a_link_in_the_place_of_a_file_is_not_followed",
    ),
    "no form, page or cookie of a browser gets anything done": (
        "tests/hostile_input/test_http.py::test_a_body_that_a_form_could_send_is_a_415_without_effect",
        "tests/security/test_doors.py::test_no_page_of_another_site_may_read_an_answer",
        "tests/security/test_doors.py::test_no_cookie_is_given_or_taken",
    ),
    "a client's request id is never ours": (
        "tests/hostile_input/test_http.py::test_a_clients_request_id_is_never_ours",
    ),
    "bodies are bounded while they are read, and never inflated": (
        "tests/hostile_input/test_http.py::test_an_endless_body_is_refused_while_it_is_read_with_flat_memory",
        "tests/hostile_input/test_http.py::test_a_gzip_bomb_is_never_inflated",
        "tests/hostile_input/test_http.py::test_ranges_without_end_give_the_whole_or_a_416",
    ),
    "a message is an id; code and garbage are refused": (
        "tests/security/test_doors.py::test_a_message_that_is_code_is_not_run_and_the_next_one_is_served",
    ),
    "prompts, answers, file names, keys and addresses are in no log, metric or error": (
        "tests/security/test_words.py::test_no_log_has_a_word_of_a_client",
        "tests/security/test_words.py::test_no_log_has_a_key_or_an_address_of_a_service",
        "tests/security/test_words.py::test_no_error_repeats_what_was_said",
        "tests/security/test_words.py::test_the_bundled_postgres_logs_errors_without_rows_and_statements",
        "tests/service/api/test_webhooks.py::test_no_log_has_a_secret",
    ),
    "processes write for their user alone, dump no memory, and listen on one port": (
        "tests/security/test_processes.py::test_no_process_can_dump_its_memory",
        "tests/security/test_processes.py::test_what_any_process_writes_is_for_its_user_alone",
        "tests/security/test_processes.py::test_nothing_of_a_stack_can_be_entered_or_read_by_others",
        "tests/security/test_processes.py::test_sockets_lie_in_a_directory_of_the_user_and_nothing_listens_but_the_api",
    ),
    "listening to others needs a key": (
        "tests/service/api/test_key_ring.py::test_listening_to_others_needs_a_key_or_the_setting",
        "tests/service/cli/test_keys.py::test_a_server_for_others_does_not_start_without_a_key",
    ),
    "what nobody needs any more is removed": (
        "tests/service/workers/test_clerk.py::test_a_deleted_file_keeps_its_bytes_until_its_batch_has_ended",
        "tests/service/workers/test_retention.py::test_",
    ),
}

if __name__ == "__main__":
    sys.stdout.write("".join(f"{rule}\n    {name}\n" for rule, names in RULES.items() for name in names))
