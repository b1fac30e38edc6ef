"""The capacity plan: what the file's figures add up to, and everything in them that contradicts; what `check` prints.

Pure arithmetic on a `Policy` and on what is known of its pods and devices. It counts with the ledger's own accounts, so
that the plan cannot promise what the ledger would refuse. Modules bottom-up: sums, contradictions, plan.
"""
