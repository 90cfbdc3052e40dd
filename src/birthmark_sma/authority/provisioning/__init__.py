"""Provision devices: check the request, sign the certificate, register the device.

Called by web/api/provision.py and the provisioning commands. No answer leaves before the commit.
"""
