"""`selfcheck`: whether the load tester's figures are right, on real sockets, against a server of known delays."""
