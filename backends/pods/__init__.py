"""The pod programs of our own: a simulator and a llama.cpp server, each a process that stands alone.

Pods are what the gateway limits, so they share no code with it: they count blocks and tokens their own way, and
nothing here imports `tenancy`. Start one with `python -m backends.pods.simulator` or `python -m
backends.pods.llamacpp`, or through `penstock pod`.
"""
