"""What the data path costs in instructions and system calls, held against numbers in the tree: `make costs`.

Three costs are counted with valgrind's callgrind: the relay a chunk, a whole one-token request, and one call through
admission. `costs.json` beside this package holds what they were, for each machine that was counted on. A cost that
grew by more than a tenth fails the run until the number is written anew, which is a change that somebody reads. Time is
never asked: instructions repeat where microseconds do not.
"""
