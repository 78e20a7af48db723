"""Tables of cases, of which the first few are enough for a quick look."""

import pytest


def slow_after(count, cases):
    """Marks all cases slow but the first `count`; a case is an argument, or a tuple of several."""
    several = (case if isinstance(case, tuple) else (case,) for case in cases[count:])
    return [*cases[:count], *(pytest.param(*case, marks=pytest.mark.slow) for case in several)]
