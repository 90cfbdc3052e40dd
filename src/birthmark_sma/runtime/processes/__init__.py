"""The number of processes of a server: what the machine allows, and the decision."""
