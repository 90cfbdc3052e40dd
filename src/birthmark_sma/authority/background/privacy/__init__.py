"""Drop exact times and addresses from old audit rows (docs/operate/privacy.md).

`coarsening` has the steps, `audit_rows` the SQL of the audit log, `ledger` that of the replay
ledger. `background.audit_upkeep` and `sma history coarsen` call it.
"""
