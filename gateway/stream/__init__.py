"""Bytes from a pod to a client: whole events, in order, ended truthfully.

The fast way hands the pod's bytes on, cut only where an event ends; the slower way re-frames event by event where
something has to be hidden or put together. Both write to a `Sink`, which need not be a client. Opening attempts, and
what follows a break, is the exchange's to decide.
"""
