"""The Online Certificate Status Protocol: requests that are parsed, responses that are signed."""
