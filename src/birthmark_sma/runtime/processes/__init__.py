"""How many processes a server runs: what the machine allows, and the decision."""
