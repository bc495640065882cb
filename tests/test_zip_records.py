"""What the members of zip files are found by: records of different sizes, and equal names."""

import numpy as np
import pytest

from rmac.cpu import tables


def test_record_ends_follow_sizes():
    """Records of 8 bytes, sizes from byte 2 on, with parts of 1, 0 and 300 bytes, and of none."""
    long = b"##" + bytes([1, 0, 0, 0, 44, 1]) + b"a" * 301
    short = b"##" + bytes(6)
    ends = np.zeros(3, np.int64)
    assert tables.record_ends(long + short + long, 8, 2, ends)
    assert ends.tolist() == [309, 317, 626]
    assert not tables.record_ends(long + short + long, 8, 2, ends[:2])  # bytes are left
    assert not tables.record_ends(long + short, 8, 2, ends)  # a record is missing
    assert not tables.record_ends(long[:-1], 8, 2, ends[:1])
    assert tables.record_ends(b"", 8, 2, ends[:0])
    with pytest.raises(ValueError, match="in the fixed bytes"):
        tables.record_ends(short, 8, 3, ends)


def test_pieces_are_equal():
    a, b = b"one two three", b"__two_one_three"
    starts = np.array([0, 4, 8, 0, 4, 10, -1, 3])
    others = np.array([6, 2, 10, 2, 2, 12, 6, 99])
    sizes = np.array([3, 3, 5, 3, 4, 4, 1, 0])
    equal = np.zeros(len(starts), bool)
    tables.are_equal(a, starts, b, others, sizes, equal)
    assert equal.tolist() == [True, True, True, False, False, False, False, True]
    with pytest.raises(ValueError, match="as many starts and results as sizes, 8"):
        tables.are_equal(a, starts, b, others[1:], sizes, equal)
