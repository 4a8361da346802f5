"""`make test-slow SHARE=K/N`: each test is in one of the shares, whatever process asks."""

import pytest
from slow import in_share

NAMES = [f"tests/a/test_b.py::test_c[{i}]" for i in range(300)]


def test_shares_are_all_tests_each_once():
    shares = [[name for name in NAMES if in_share(f"{k}/3")(name)] for k in (1, 2, 3)]
    assert sorted(sum(shares, [])) == sorted(NAMES)
    assert all(70 < len(share) < 130 for share in shares)
    assert in_share("2/3")(NAMES[0]) == (NAMES[0] in shares[1])


@pytest.mark.parametrize("share", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", ""])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(pytest.UsageError, match="should be K/N"):
        in_share(share)
