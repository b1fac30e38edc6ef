"""The server's side of a run: the CPU and memory of its process, and what it counted itself."""
