"""The batch plan: each line once, lines that start alike together, and shards that keep groups whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from workers.batches.plan import PlanLine, hash_starts, plan_shards

SYSTEM = "You label tickets."


def line(*texts: str, model: str = "m", expected: int = 100, duplicate_of: int = -1) -> PlanLine:
    """`duplicate_of` is filled in by `plan` where it is left out."""
    return PlanLine(model=model, starts=hash_starts(model, texts), expected_tokens=expected, duplicate_of=duplicate_of)


def numbered(lines: Sequence[PlanLine]) -> list[PlanLine]:
    return [
        PlanLine(
            model=one.model,
            starts=one.starts,
            expected_tokens=one.expected_tokens,
            duplicate_of=number if one.duplicate_of < 0 else one.duplicate_of,
        )
        for number, one in enumerate(lines)
    ]


def order(lines: Sequence[PlanLine], shard_lines: int = 128) -> list[int]:
    return [number for shard in plan_shards(numbered(lines), shard_lines) for number in shard.lines]


def sizes(lines: Sequence[PlanLine], shard_lines: int) -> list[int]:
    return [len(shard.lines) for shard in plan_shards(numbered(lines), shard_lines)]


def document(name: str, question: int, characters: int = 1500) -> str:
    return f"Answer from the document. Document {name}: " + f"{name} " * (characters // (len(name) + 1)) + str(question)


def test_an_empty_batch_has_no_shards() -> None:
    assert plan_shards([], 128) == []


def test_lines_that_share_nothing_stay_in_the_order_of_the_file() -> None:
    assert order([line(f"{n}?", expected=n) for n in range(20)]) == list(range(20))


def test_lines_of_one_system_prompt_stand_together_where_the_first_of_them_was() -> None:
    lines = [line("a?"), line(SYSTEM, "b?"), line("c?"), line("other", "d?"), line(SYSTEM, "e?"), line("other", "f?")]
    assert order(lines) == [0, 1, 4, 2, 3, 5]


def test_shuffled_questions_about_documents_are_grouped_by_document() -> None:
    """All documents follow the same instruction, and differ soon after it."""
    lines = [line(SYSTEM, document(f"d{n % 16}", n)) for n in range(128)]
    documents = [number % 16 for number in order(lines)]
    assert documents == sorted(documents)


def test_a_conversation_that_goes_on_stands_beside_the_one_it_continues() -> None:
    turns = ["hello", "hi", "how are you?", "well"]
    assert order([line(*turns[:1]), line("else"), line(*turns[:3]), line("more"), line(*turns)]) == [0, 2, 4, 1, 3]


def test_inside_a_group_the_longest_answers_come_first_and_equal_ones_in_file_order() -> None:
    lines = [line(SYSTEM, f"{n}?", expected=expected) for n, expected in enumerate([5, 90, 5, 1000, 90])]
    assert order(lines) == [3, 1, 4, 0, 2]


def test_models_are_planned_apart_although_they_get_the_same_prompts() -> None:
    lines = [line(SYSTEM, "x?", model=model) for model in "abab"]
    shards = plan_shards(numbered(lines), 128)
    assert [(shard.model, shard.lines) for shard in shards] == [("a", [0, 2]), ("b", [1, 3])]


def test_shards_of_unrelated_lines_are_full() -> None:
    assert sizes([line(f"{n}?") for n in range(300)], 128) == [128, 128, 44]


def test_shards_end_where_groups_end() -> None:
    lines = [line(f"prompt of group {group}", f"{n}?") for group in range(4) for n in range(100)]
    assert sizes(lines, 128) == [100, 100, 100, 100]


def test_a_group_of_up_to_half_as_much_again_is_one_shard_and_a_larger_one_is_cut() -> None:
    small = [line(f"{n}?") for n in range(40)]
    group = [line(SYSTEM, f"{n}?") for n in range(193)]
    assert sizes([*small, *group[:192]], 128) == [40, 192]
    assert sizes(group, 128) == [128, 65]


def test_a_group_that_is_too_large_is_cut_between_the_groups_in_it() -> None:
    lines = [line(SYSTEM, document(f"d{group}", n)) for group in range(5) for n in range(90)]
    assert sizes(lines, 128) == [90, 90, 90, 180]


def test_identical_lines_count_once() -> None:
    lines = [
        line("same", duplicate_of=0),
        *(line(f"{n}?") for n in range(3)),
        *(line("same", duplicate_of=0) for _ in range(50)),
    ]
    shards = plan_shards(numbered(lines), 2)
    assert [shard.lines for shard in shards] == [[0, *range(4, 54), 1], [2, 3]]


@st.composite
def batches(draw: st.DrawFn) -> list[PlanLine]:
    """Conversations that share starts of many lengths; equal ones with equal limits may be duplicates."""
    pieces = st.sampled_from(["a", "b", "a" * 70, "a" * 70 + "b", "c" * 300, "c" * 300 + "d", "c" * 20_000 + "e"])
    texts = st.lists(pieces, min_size=1, max_size=3).map(tuple)
    bodies = draw(
        st.lists(st.tuples(texts, st.sampled_from("mk"), st.sampled_from([1, 50]), st.booleans()), max_size=60)
    )
    first: dict[object, int] = {}
    return [
        line(
            *body,
            model=model,
            expected=expected,
            duplicate_of=first.setdefault((body, model, expected), n) if greedy else n,
        )
        for n, (body, model, expected, greedy) in enumerate(bodies)
    ]


def starts_of(lines: Sequence[PlanLine], depth: int) -> list[int | None]:
    return [one.starts[depth] if depth < len(one.starts) else None for one in lines]


@given(batches(), st.integers(1, 40))
def test_every_line_is_planned_once_and_the_plan_is_the_same_each_time(lines: list[PlanLine], size: int) -> None:
    shards = plan_shards(lines, size)
    assert sorted(number for shard in shards for number in shard.lines) == list(range(len(lines)))
    assert all(shard.lines for shard in shards)
    assert all(lines[number].model == shard.model for shard in shards for number in shard.lines)
    assert plan_shards(lines, size) == shards


@given(batches())
def test_lines_that_start_alike_are_neighbours_at_every_depth(lines: list[PlanLine]) -> None:
    planned = [lines[number] for number in order(lines)]
    for depth in range(max((len(one.starts) for one in lines), default=0)):
        starts = starts_of(planned, depth)
        begun = [start for before, start in pairwise([None, *starts]) if start is not None and start != before]
        assert len(begun) == len(set(begun)), f"a group of depth {depth} is in two places"


@given(batches())
def test_groups_come_in_the_order_of_their_first_lines(lines: list[PlanLine]) -> None:
    """By the result alone: the first line of each model's outermost groups, and of the lines in none."""
    planned = order(lines)
    starts = starts_of(lines, 0)
    firsts = [planned[0]] if planned else []
    firsts += [number for before, number in pairwise(planned) if starts[before] != starts[number]]
    leaders = [min(n for n in planned if starts[n] == starts[first]) for first in firsts]
    for model in "mk":
        of_model = [leader for leader in leaders if lines[leader].model == model]
        assert of_model == sorted(of_model)


@given(batches(), st.integers(1, 40))
def test_a_shard_holds_half_as_much_again_at_most_and_duplicates_are_never_separated(
    lines: list[PlanLine], size: int
) -> None:
    shard_of_body: dict[int, int] = {}
    for place, shard in enumerate(plan_shards(lines, size)):
        bodies = [lines[number].duplicate_of for number in shard.lines]
        assert len(set(bodies)) <= max(size * 3 // 2, 1)
        runs = [body for before, body in pairwise([None, *bodies]) if body != before]
        assert len(runs) == len(set(runs)), "duplicates are neighbours"
        assert all(shard_of_body.setdefault(body, place) == place for body in bodies), "duplicates are in one shard"


@given(batches(), st.integers(1, 40))
def test_a_group_that_fits_into_a_shard_is_never_cut(lines: list[PlanLine], size: int) -> None:
    shard_of = {n: place for place, shard in enumerate(plan_shards(lines, size)) for n in shard.lines}
    for depth in range(max((len(one.starts) for one in lines), default=0)):
        groups: dict[int, list[int]] = {}
        for number, start in enumerate(starts_of(lines, depth)):
            if start is not None:
                groups.setdefault(start, []).append(number)
        for group in groups.values():
            if len({lines[number].duplicate_of for number in group}) <= size * 3 // 2:
                assert len({shard_of[number] for number in group}) == 1
