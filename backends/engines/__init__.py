"""What each kind of inference server publishes and wants, one module a kind, all behind `engine.Engine`.

An engine shapes the request for its pods (what to strip, which salt, whether usage must be asked for) and reads their
metrics. Engines are stateless: adding one is adding a file here and a line where they are looked up.
"""
