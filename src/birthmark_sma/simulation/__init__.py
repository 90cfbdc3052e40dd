"""Simulated cameras and aggregation servers that use a real authority (`sma simulate`).

Pure modules: `expected_outcomes` (the cases and their right outcomes), `camera_families`, `plan`
(the actions of each camera, drawn from a seed), `attacks`, `results`, `report`, `chart`.
Modules with sockets or files: `target` (the authority), `fleet` (cameras, built on
`birthmark_sma.device`), `aggregation` (servers, built on `birthmark_sma.client`), `player` (carries
out a plan), `run` (a whole run). docs/simulate.md is the guide.
"""
