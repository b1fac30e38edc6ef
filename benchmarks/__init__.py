"""What the gateway costs, measured beside its peers in the same run. May import everything; nothing imports it."""
