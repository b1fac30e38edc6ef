"""`penstock.yaml` and its environment become one `Policy`, or every fault with its place.

The only part of tenancy that people write for: every key of the file is said once, in the schema, from which
validation, the JSON Schema and the documentation follow. It reads the Kubeflow ConfigMap `kubeflow-gpu-profiles` too.
It decides what a file may say; what the facts then mean is decided by the modules that take the `Policy`.
"""
