"""Provision devices: check the request, sign the certificate, register the device.

`service` provisions one device, for web/api/provision.py and `sma provision`. `bulk` provisions
many in one transaction, for `sma provision-batch`. This package must never return an answer before
the transaction of its device has committed.
"""
