"""Every reason has a meaning, and stays the same word in pools, processes and logs."""

import pickle

from pipelines.images.rejects import Reason


def test_every_reason_has_a_meaning_of_its_own() -> None:
    meanings = [reason.meaning for reason in Reason]
    assert all(meaning and not meaning.endswith(".") for meaning in meanings)
    assert len(set(meanings)) == len(meanings)


def test_a_reason_is_the_word_in_the_pool() -> None:
    for reason in Reason:
        assert Reason(reason.value) is reason and reason.value == reason.name.lower()
        assert f"{reason}" == reason == reason.value
        assert pickle.loads(pickle.dumps(reason)) is reason


def test_what_never_arrived_is_a_failed_download() -> None:
    assert {reason for reason in Reason if reason.never_arrived} == {
        Reason.MISSING, Reason.INCOMPLETE_ARCHIVE, Reason.UNREADABLE
    }  # fmt: skip
