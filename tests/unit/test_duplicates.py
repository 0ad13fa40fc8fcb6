import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.survey.duplicates import copies, largest, repeated, twins

numbers = st.lists(st.integers(0, 6), max_size=30)


def marks(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)


@given(numbers)
def test_copies_name_the_first_with_the_same_content(values):
    expected = [
        values.index(value) if value and values.index(value) < place else -1 for place, value in enumerate(values)
    ]
    assert copies(marks(values)).tolist() == expected


def test_largest_counts_the_first_too():
    assert largest(copies(marks([5, 7, 5, 7, 7, 1])), 5) == [(1, 3), (0, 2)]
    assert largest(copies(marks([5, 7, 5, 7, 7, 1])), 1) == [(1, 3)]
    assert largest(copies(marks([])), 1) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=30))
def test_repeated_are_answers_to_different_prompts(rows):
    answers, prompts = ([row[side] for row in rows] for side in (0, 1))
    found = repeated(marks(answers), marks(prompts))
    expected = {
        answers.index(answer): (len({prompt for one, prompt in rows if one == answer}), answers.count(answer))
        for answer in set(answers) - {0}
    }
    expected = {row: counts for row, counts in expected.items() if counts[0] > 1}
    told = zip(found.row.tolist(), found.prompts.tolist(), found.rows.tolist(), strict=True)
    assert {row: (prompts, count) for row, prompts, count in told} == expected
    assert found.prompts.tolist() == sorted(found.prompts.tolist(), reverse=True)


@given(numbers, numbers)
def test_twins_are_the_first_of_the_others(mine, others):
    expected = [others.index(value) if value and value in others else -1 for value in mine]
    assert twins(marks(mine), marks(others)).tolist() == expected
