"""Tables of cases, of which the first few are enough for a quick look."""

import pytest


def slow_after(count, cases):
    """Marks all cases slow but the first `count`; a case is a tuple of a test's arguments."""
    rest = [pytest.param(*case, marks=pytest.mark.slow) for case in cases[count:]]
    return [*cases[:count], *rest]
