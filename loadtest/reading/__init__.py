"""What people write, a YAML file or a command line, becomes a `Scenario`, or every fault at once with its place."""
