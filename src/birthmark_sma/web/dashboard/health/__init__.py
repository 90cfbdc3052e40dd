"""The page of the authority's health, and the examination that it shows."""
