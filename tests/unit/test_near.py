import random

import numpy as np
import pytest

from shoal.survey import near
from shoal.survey.near import Links, band_rows, first_kept, links, shingles, signatures

WORDS = [f"word{number}" for number in range(5000)]


def text(seed: int, length: int = 80) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def edited(original: str, changes: int) -> str:
    """With words replaced at even distances."""
    words = original.split()
    for change in range(changes):
        words[change * len(words) // changes] = f"new{change}"
    return " ".join(words)


def jaccard(left: str, right: str) -> float:
    one, other = set(shingles(left)), set(shingles(right))
    return len(one & other) / len(one | other)


def test_shingles_are_words_that_follow_each_other():
    assert shingles("The cat, the CAT sat!") == ["the cat the", "cat the cat", "the cat sat"]
    assert shingles("Two words") == ["two words"]
    assert shingles(" ?! ") == []


def test_signs_are_words_and_so_is_each_character_of_a_script_without_spaces():
    assert shingles("5 + 3") != shingles("5 - 3")
    assert shingles("你好吗？") == ["你 好 吗"]
    assert shingles("สวัสดี") == [" ".join("สวัสดี"[i : i + 3]) for i in range(4)]


def test_signatures_estimate_similarity():
    pairs = [(text(seed), edited(text(seed), 1 + seed % 12)) for seed in range(200)]
    left, right = (signatures(side) for side in zip(*pairs, strict=True))
    errors = near.similarity(left, right) - np.array([jaccard(*pair) for pair in pairs])
    assert abs(errors.mean()) < 0.01
    assert errors.std() < 0.045  # sqrt(0.25 / 128) at worst
    assert (signatures(["!"]) == near.BLANK).all()
    assert signatures([]).shape == (0, near.PERMUTATIONS)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold):
    rows = band_rows(threshold)
    assert 1 - (1 - threshold**rows) ** (near.PERMUTATIONS // rows) >= near.RECALL


def test_links_are_the_pairs_above_the_threshold_and_no_others():
    originals = [text(seed) for seed in range(150)]
    texts = [*originals, *(edited(one, 1 + place % 6) for place, one in enumerate(originals))]
    found = signatures(texts)
    pairs = links(found, 0.8)
    told = set(zip(pairs.row.tolist(), pairs.of.tolist(), strict=True))
    alike = {(row, of) for of in range(300) for row in range(of + 1, 300) if (found[row] == found[of]).mean() >= 0.8}
    assert told <= alike
    assert len(told) >= 0.99 * len(alike) > 50
    assert all(row == of + 150 for row, of in told)


def test_a_row_resembles_earlier_rows_only_and_the_same_signatures_give_the_same_pairs():
    found = signatures([text(1), text(2), edited(text(1), 1), text(1)])
    pairs = links(found, 0.8)
    assert (pairs.row > pairs.of).all()
    again = links(found.copy(), 0.8)
    assert np.array_equal(pairs.row, again.row) and np.array_equal(pairs.of, again.of)
    assert 1 not in {*pairs.row.tolist(), *pairs.of.tolist()}


def test_across_compares_with_marked_rows_alone():
    texts = [text(1), edited(text(1), 1), edited(text(1), 2), text(2), edited(text(2), 1)]
    pairs = links(signatures(texts), 0.8, np.array([False, True, False, False, False]))
    assert list(zip(pairs.row.tolist(), pairs.of.tolist(), strict=True)) == [(0, 1), (2, 1)]


def test_many_alike_rows_cost_few_comparisons(monkeypatch):
    compared = []
    monkeypatch.setattr(near, "similarity", lambda left, right: compared.append(len(left)) or np.ones(len(left)))
    links(np.tile(signatures([text(1)]), (2000, 1)), 0.8)
    assert sum(compared) <= 2000 * (near.PERMUTATIONS // band_rows(0.8) + 1)


def test_nothing_to_compare():
    assert len(links(np.zeros((0, near.PERMUTATIONS), np.uint32), 0.8).row) == 0
    assert len(links(signatures([text(1)]), 0.8).row) == 0


def test_the_first_of_a_chain_stays_and_no_row_goes_for_one_that_went():
    chain = Links(np.array([1, 2, 3, 3]), np.array([0, 1, 2, 0]), np.array([0.9, 0.9, 0.9, 0.8], np.float32))
    of, alike = first_kept(chain, 5)
    assert of.tolist() == [-1, 0, -1, 2, -1]
    assert alike[3] == np.float32(0.9)
