"""The `penstock` command line, one module a command.

Each has `add(subparsers)`, whose help teaches, and `run(args)`, which returns the exit code: 0 good, 1 found wanting,
2 misused. A module is imported only when its command is named, so that starting stays fast.
"""
