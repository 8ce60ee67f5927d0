"""Reports, plans, comparisons and sweeps, as data."""
