"""HTTP on the client's side: heads and bodies within bounds, a body as a `Call`, a refusal as an answer.

The only place that knows the form of an error object or of a header, and the only one that touches uvicorn. What a
call may have, and where it goes, is decided elsewhere.
"""
