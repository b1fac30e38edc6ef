"""Penstock's data path beside plain proxies, in one run: the same loads through each gate in turn, before one pod.

    .venv/bin/python -m benchmarks.side_by_side [--quick] [--only LOAD ...] [--rounds N] [--with litellm]

Read top down: `gates` starts what is measured, `loads` sends and measures, `checks` tells whether the answers were
right, `figures` makes ratios and verdicts of the samples, `report` and `plots` show them.
"""
