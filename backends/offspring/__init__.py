"""One run of a pod's process, so kept that nothing of it outlives the gateway.

Between the gateway and each pod stands a *guardian*, a small process with one job: it starts the pod, and when it is
told to, or when the pipe to the gateway ends (however the gateway died), it runs the pod's `Ending` and kills what is
left. What is started and how it is ended are values (`Launch`, `Ending`), written down once and run by the guardian in
either case. When to start, whether a pod is ready and when it is started again is the supervisor's to decide.
"""

from backends.offspring.child import GUARDIAN, Offspring
from backends.offspring.launch import Command, Ending, Launch, Signal, Step, Wait

__all__ = ["GUARDIAN", "Command", "Ending", "Launch", "Offspring", "Signal", "Step", "Wait"]
