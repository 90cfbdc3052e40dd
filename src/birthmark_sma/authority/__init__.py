"""What the authority does, one module a verb.

`ceremony` founds it, `key_stock` fills its tables, `provisioning` registers devices, `validation`
judges camera tokens, `revocation` takes devices out, `reports` counts. `authority.open_authority`
is the only place where the parts are wired together.
"""
