"""Few of all combinations of parameters, among which any values of several different parameters meet.

Most faults need one value, or two that meet (D. R. Kuhn, D. R. Wallace and A. M. Gallo, "Software fault interactions
and implications for software testing", 2004): so a test of four parameters takes a dozen cases instead of a hundred.
"""

import itertools
import random
from collections.abc import Hashable, Mapping, Sequence


def few(combinations: Sequence[Mapping[str, Hashable]], strength: int, seed: str) -> set[int]:
    """Places in the sequence. Any ``strength`` values of different parameters that meet in it, meet in one of them."""
    meetings = [set(itertools.combinations(sorted(each.items()), strength)) for each in combinations]
    places = random.Random(seed).sample(range(len(meetings)), len(meetings))
    missing, chosen = set().union(*meetings), set()
    while missing:
        best = max(places, key=lambda place: len(meetings[place] & missing))
        missing -= meetings[best]
        chosen.add(best)
    return chosen
