"""What operators see: the access log and the metrics.

Each takes one `Record` a finished request, and gauges that are read when asked for. There are no hooks in the data
path, and never a prompt, an answer or a key in what is written.
"""
