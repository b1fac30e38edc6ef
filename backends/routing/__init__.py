"""Which of the pods that may take a call takes it.

The index (tenant, model) → pods is prebuilt when the fleet changes, so that a choice costs the same with ten pods and
with a thousand. Whether a pod has room is asked of the ledger; whether it is well, of the fleet.
"""
