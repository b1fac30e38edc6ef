"""The HTTP face: an OpenAI-compatible service in front of the pods, and the command line.

A request can be followed top to bottom through one module, `gateway.exchange`. Policy is asked per request, never per
token; after the first byte the relay passes the pod's bytes through. Objects meet in `gateway.assembly`, where clock
and random enter; nothing here decides what a tenant may have (`tenancy`) or how a pod is doing (`backends`).
"""
