#!/bin/sh
# Try an authority with curl and OpenSSL: provision a camera, validate tokens, read a problem.
#
#     sma serve --sandbox                          # in another terminal
#     sh camera.sh http://127.0.0.1:8000 [token.json]
#
# This script makes no camera token, because the openssl command has no AES-GCM. It sends tokens that
# a sandbox answers by their table id (/sandbox lists them), and your own token if you name its file.
set -eu
url=$1
token_file=${2:-}
umask 077
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
# Without --fail: a problem document has a body to show, so the script prints the status itself.
ask() { curl -sS --max-time 20 -o "$place/answer" -w '%{http_code}' "$@"; }
say() { printf '%s\n' "$*"; }
member() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$place/answer"; }

say "health: $(ask "$url/health") $(member status)"

# 1. Make a key that never leaves the camera, and a CSR that proves its possession.
serial="shell-camera-$(openssl rand -hex 6)"
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$place/key.pem" 2>/dev/null
openssl req -new -key "$place/key.pem" -subj "/CN=$serial" -out "$place/csr.pem"
csr=$(awk '{printf "%s\\n", $0}' "$place/csr.pem")

# 2. Provision the camera. If a response is lost, send the same request with the same Idempotency-Key.
idempotency_key=$(openssl rand -hex 16)
provision() {
    ask "$url/api/v1/devices/provision" -H 'Content-Type: application/json' \
        -H "Idempotency-Key: $idempotency_key" \
        -d "{\"device_serial\": \"$serial\", \"device_family\": \"Shell\", \"csr\": \"$csr\"}"
}
say "provision: $(provision) $(member provisioning_id)"
cp "$place/answer" "$place/camera.json"
say "the same again: $(provision)"
cmp -s "$place/answer" "$place/camera.json" && say "the answers are the same"

# 3. Verify the certificate up to the root. Pin the root: compare its fingerprint with the published one.
sed -n 's/.*"device_certificate": *"\([^"]*\)".*/\1/p' "$place/camera.json" | sed 's/\\n/\n/g' >"$place/device.pem"
sed -n 's/.*"certificate_chain": *\["\([^"]*\)".*/\1/p' "$place/camera.json" | sed 's/\\n/\n/g' >"$place/intermediate.pem"
curl -sS --max-time 20 "$url/pki/root.crt" | openssl x509 -inform DER -out "$place/root.pem"
openssl verify -x509_strict -purpose sslclient -CAfile "$place/root.pem" \
    -untrusted "$place/intermediate.pem" "$place/device.pem" | sed "s|$place/||"

# 4. Validate tokens. Only a 200, or a 400 with validation_result, is a verdict.
nothing=$(printf '%096d' 0)
token() {
    printf '{"encrypted_nuc_hash": "%s", "table_id": %s, "key_index": 0, "nonce": "%s"}' \
        "$nothing" "$1" "$(openssl rand -hex 12)"
}
validate() { ask "$url/api/v1/validate/nuc" -H 'Content-Type: application/json' -d "$1"; }
for table_id in 9000 9001 9006 9503; do
    status=$(validate "$(token "$table_id")")
    say "table $table_id: $status $(member validation_result) $(member detail)"
done
if [ -n "$token_file" ]; then
    say "your token: $(validate "@$token_file") $(member validation_result)"
fi
