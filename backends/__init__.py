"""The pods: how they are reached, watched, chosen, started and ended.

Everything that knows an inference engine, a socket to a pod or a child process lives here; what a tenant may have is
`tenancy`'s to say, and what a client sees is `gateway`'s. The way an attempt ended is a value (`backends.outcome`),
never an exception. Only the fleet changes the state of a pod.
"""
