"""The samples of many crops as those of one, for each crop size alone would be compiled on its own, for minutes."""

import numpy as np

TABLES = ("to_start", "to_stop", "steps", "lower", "upper")


def of_all_sizes(lattice, size, most):
    """A `_geometry.Lattice` of crops of 1, of 2, ... ``most`` pixels, one after the other."""
    lattices = [lattice(size, n) for n in range(1, most + 1)]
    rows = {name: [np.broadcast_to(getattr(each, name), each.to_stop.shape) for each in lattices] for name in TABLES}
    return lattices[-1]._replace(**{name: np.concatenate(row, axis=1) for name, row in rows.items()})
