"""Renewal of device certificates: proof, windows, orders.

A device renews with the key of its certificate; it needs no access key. `service` renews, `windows`
says when a device should, and `orders` pulls the windows forward in an emergency.
"""
