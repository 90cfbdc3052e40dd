"""Renew a camera's certificate, by itself and safe against power cuts.

1. The new key pairs and the CSR are on disk before a byte is sent. They are part of the identity in
   `camera.json`, sealed like the rest. A restarted camera sends the same CSR with a new time and
   signature, and the authority returns the same certificate.
2. The response is checked as at provisioning: key, serial, root, secrets.
3. The renewed identity replaces the old one and its request on disk in one step. Then the camera
   captures with it.

`renewer` does it, `schedule` says when, `messages` has the request and the response. `camera`
uses the package.
"""
