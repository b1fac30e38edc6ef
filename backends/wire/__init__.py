"""The upstream wire: one request to one pod over HTTP/1.1, its bytes as the pod sent them.

Framing is sans-I/O and knows to the byte where an event and a message end; a connection adds time-outs and
back-pressure; a pool keeps connections alive and repairs silently what a kept one breaks. It decides nothing about
trying again elsewhere and knows nothing of engines, tenants or clients.

Others use `pool.Pool` and `pool.connector`, and `transfer.Transfer`, `Timeouts` and `Receiver` with `head.Head`.
"""
