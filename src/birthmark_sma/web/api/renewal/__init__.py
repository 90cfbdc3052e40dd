"""The endpoints of renewal, with the models of their bodies."""
