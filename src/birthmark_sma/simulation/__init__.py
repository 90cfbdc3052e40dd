"""Cameras and aggregation servers that are played, against a real authority.

PURE, and drawn from a seed: `cases` (what each case is, and which ending is right), `families`,
`plan` (what each camera does when). With sockets and files: `fleet` (cameras, made with
`birthmark_sma.device`), `aggregation` (servers, made with `birthmark_sma.client`), `play` (a plan,
carried out), and `reception` and `delivery` for one end alone. What came of it, PURE again:
`tally`, `report`, `chart`. docs/simulate.md is the guide.
"""
