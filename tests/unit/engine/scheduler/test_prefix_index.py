"""The prefix index answers as a comparison with every slot does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduler.prefix_index import PrefixIndex, common_prefix, members

SLOTS = 6
TOKENS = st.lists(st.integers(1, 2), max_size=12)
PARTS = st.sampled_from([[1] * 50, [*[1] * 63, 2], [1, 2]])
LONG = st.lists(PARTS, max_size=5).map(lambda parts: [token for part in parts for token in part])
CHANGES = st.one_of(
    st.tuples(st.just("put"), st.integers(0, SLOTS - 1), st.sampled_from("tu"), TOKENS | LONG),
    st.tuples(st.just("remove"), st.integers(0, SLOTS - 1)),
    st.tuples(st.just("grow"), st.integers(0, SLOTS - 1), TOKENS),
)


def shared(one: list[int], other: list[int]) -> int:
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(CHANGES, max_size=25), prompt=TOKENS | LONG, cut=st.integers(0, 2))
def test_every_slot_is_found_with_its_longest_common_prefix(changes, prompt: list[int], cut: int) -> None:
    index, known = PrefixIndex(), dict[int, tuple[str, list[int]]]()
    for change in changes:
        match change:
            case "put", slot, tenant, tokens:
                known[slot] = tenant, list(tokens)
                index.put(slot, *known[slot])
            case "remove", slot:
                known.pop(slot, None)
                index.remove(slot)
            case "grow", slot, tokens:
                if slot in known:
                    known[slot][1].extend(tokens)
    most = max(0, len(prompt) - cut)
    wanted = {slot: shared(tokens, prompt[:most]) for slot, (tenant, tokens) in known.items() if tenant == "t"}
    matches = index.search("t", prompt, most)
    assert [match.length for match in matches] == sorted((match.length for match in matches), reverse=True)
    found = [(slot, match.length) for match in matches for slot in members(match.mask)]
    assert dict(found) == {slot: length for slot, length in wanted.items() if length}
    assert len(dict(found)) == len(found), "a slot is in one match"
    for slot in range(SLOTS):
        index.remove(slot)
    assert index.num_nodes == 0, "nothing is kept of slots that are gone"


def test_the_tree_is_as_small_as_its_slots_however_many_prompts_have_passed() -> None:
    index, document = PrefixIndex(), list(range(1000))
    index.put(0, "t", document)
    for at in range(1, 900, 7):
        index.put(1, "t", [*document[:at], 5000])
    assert index.num_nodes <= 4


def test_a_common_prefix_is_exact_at_every_length_and_limit() -> None:
    document = list(range(300))
    for length in range(0, 300, 13):
        other = [*document[:length], -1, *document[length + 1 :]]
        assert common_prefix(document, other, 300) == length
        assert common_prefix(document, other, length // 2) == length // 2
        assert common_prefix(document, other, 300, length // 3) == length
