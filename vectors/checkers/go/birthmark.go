// The Birthmark protocol in Go 1.25 or later, with the standard library alone. Copy this file.
package main

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// ErrRefused says that something is not what it should be, and no more.
var ErrRefused = errors.New("refused")

// CameraToken is a camera token as it travels.
type CameraToken struct {
	EncryptedNucHash string `json:"encrypted_nuc_hash"`
	TableID          int64  `json:"table_id"`
	KeyIndex         int64  `json:"key_index"`
	Nonce            string `json:"nonce"`
}

// DeriveKey is HKDF-SHA256, 32 bytes long (RFC 5869). The normative salt is "Birthmark", without a
// suffix.
func DeriveKey(masterKey []byte, keyIndex uint32, salt, infoSuffix []byte) ([]byte, error) {
	info := append(binary.BigEndian.AppendUint32(nil, keyIndex), infoSuffix...)
	return hkdf.Key(sha256.New, masterKey, salt, string(info), 32)
}

func gcm(masterKey []byte, keyIndex int64) (cipher.AEAD, error) {
	key, err := DeriveKey(masterKey, uint32(keyIndex), []byte("Birthmark"), nil)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Seal makes a camera token. The nonce is 12 fresh random bytes, never used twice.
func Seal(nucHash, masterKey []byte, tableID, keyIndex int64, nonce []byte) (CameraToken, error) {
	aead, err := gcm(masterKey, keyIndex)
	if err != nil {
		return CameraToken{}, err
	}
	sealed := aead.Seal(nil, nonce, nucHash, nil)
	return CameraToken{hex.EncodeToString(sealed), tableID, keyIndex, hex.EncodeToString(nonce)}, nil
}

// Open returns the NUC hash inside a camera token.
func Open(token CameraToken, masterKey []byte, keysPerTable int64) ([]byte, error) {
	sealed, err := hex.DecodeString(token.EncryptedNucHash)
	if err != nil || len(sealed) != 48 {
		return nil, ErrRefused
	}
	nonce, err := hex.DecodeString(token.Nonce)
	if err != nil || len(nonce) != 12 { // Open would panic
		return nil, ErrRefused
	}
	if token.KeyIndex < 0 || token.KeyIndex >= keysPerTable {
		return nil, ErrRefused
	}
	aead, err := gcm(masterKey, token.KeyIndex)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nonce, sealed, nil)
}

const sealing = "ECDH-ES+A256KW"

// OpenSecrets opens compact JWE (RFC 7516, section 5.2; RFC 7518, sections 4.3 and 4.6), read strictly.
// The kind of the key alone decides the algorithm.
func OpenSecrets(jwe string, key crypto.PrivateKey) (Fields, error) {
	var parts [5][]byte
	texts := strings.Split(jwe, ".")
	if len(texts) != len(parts) {
		return nil, ErrRefused
	}
	for i, text := range texts {
		decoded, err := fromBase64url(text)
		if err != nil {
			return nil, err
		}
		parts[i] = decoded
	}
	header, err := Parse(string(parts[0]))
	if err != nil {
		return nil, err
	}
	if contentType, found := header["cty"]; found && contentType != "json" {
		return nil, ErrRefused
	}
	for name := range header { // no zip, no crit, no party information
		if !slices.Contains([]string{"alg", "enc", "epk", "cty"}, name) {
			return nil, ErrRefused
		}
	}
	if header["enc"] != "A256GCM" || len(parts[2]) != 12 || len(parts[4]) != 16 {
		return nil, ErrRefused
	}
	contentKey, err := contentKey(header, parts[1], key)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(contentKey)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	opened, err := aead.Open(nil, parts[2], append(parts[3], parts[4]...), []byte(texts[0]))
	if err != nil {
		return nil, err
	}
	return Parse(string(opened))
}

func contentKey(header Fields, encrypted []byte, key crypto.PrivateKey) ([]byte, error) {
	epk, agreed := header["epk"]
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if header["alg"] != "RSA-OAEP-256" || agreed || len(encrypted) != key.Size() {
			return nil, ErrRefused
		}
		opened, err := rsa.DecryptOAEP(sha256.New(), nil, key, encrypted, nil)
		if err != nil || len(opened) != 32 {
			return nil, ErrRefused
		}
		return opened, nil
	case *ecdh.PrivateKey:
		if header["alg"] != sealing {
			return nil, ErrRefused
		}
		point, err := ephemeral(epk, key.Curve())
		if err != nil {
			return nil, err
		}
		shared, err := key.ECDH(point)
		if err != nil {
			return nil, err
		}
		return unwrap(concatKDF(shared), encrypted)
	}
	return nil, ErrRefused
}

func ephemeral(epk any, curve ecdh.Curve) (*ecdh.PublicKey, error) {
	fields, _ := epk.(Fields)
	x, _ := fields["x"].(string)
	y, _ := fields["y"].(string)
	kind, name, members := "EC", "P-256", 4
	switch curve {
	case ecdh.P384():
		name = "P-384"
	case ecdh.X25519():
		kind, name, members = "OKP", "X25519", 3
	}
	if fields["kty"] != kind || fields["crv"] != name || len(fields) != members {
		return nil, ErrRefused
	}
	point, err := fromBase64url(x)
	if err != nil {
		return nil, err
	}
	if curve != ecdh.X25519() {
		rest, err := fromBase64url(y)
		if err != nil || len(rest) != len(point) {
			return nil, ErrRefused
		}
		point = slices.Concat([]byte{4}, point, rest) // uncompressed: SEC 1, section 2.3.4
	}
	return curve.NewPublicKey(point) // which refuses what is not on the curve, and other lengths
}

// fromBase64url takes one spelling alone. Go ignores line ends, even where it is strict.
func fromBase64url(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") {
		return nil, ErrRefused
	}
	return base64.RawURLEncoding.Strict().DecodeString(text)
}

// concatKDF: one round is enough for 32 bytes. No party is named; 256 is the size of the key in bits.
func concatKDF(shared []byte) []byte {
	message := append(binary.BigEndian.AppendUint32(nil, 1), shared...)
	message = append(binary.BigEndian.AppendUint32(message, uint32(len(sealing))), sealing...)
	message = binary.BigEndian.AppendUint32(append(message, make([]byte, 8)...), 256)
	digest := sha256.Sum256(message)
	return digest[:]
}

// unwrap undoes AES key wrap (RFC 3394, section 2.2.2), which the standard library has not.
func unwrap(key, wrapped []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil || len(wrapped) != 40 {
		return nil, ErrRefused
	}
	both, rest := make([]byte, 16), bytes.Clone(wrapped)
	for step := 6 * 4; step > 0; step-- {
		r := rest[8*((step-1)%4+1):][:8]
		copy(both, rest[:8])
		copy(both[8:], r)
		both[7] ^= byte(step)
		block.Decrypt(both, both)
		copy(rest, both[:8])
		copy(r, both[8:])
	}
	if !bytes.Equal(rest[:8], bytes.Repeat([]byte{0xa6}, 8)) {
		return nil, ErrRefused
	}
	return rest[8:], nil
}

// Asked is what a device asked for, and what it trusts.
type Asked struct {
	DeviceSerial string
	DeviceKey    crypto.PublicKey
	RecipientKey crypto.PrivateKey
	Root         string
}

// OpenResponse returns the secrets in an answer to provisioning, if all of it is for this device.
func OpenResponse(response Fields, asked Asked, now time.Time) (Fields, error) {
	leaf, _ := response["device_certificate"].(string)
	above, err := texts(response["certificate_chain"])
	if err != nil || len(above) != 2 {
		return nil, ErrRefused
	}
	serial, err := VerifyChain([]string{leaf, above[0]}, asked.Root, now)
	if err != nil || serial != asked.DeviceSerial {
		return nil, ErrRefused
	}
	path, err := certificates(leaf, above[1], asked.Root)
	if err != nil || !path[1].Equal(path[2]) || !sameKey(path[0].PublicKey, asked.DeviceKey) {
		return nil, ErrRefused
	}
	sealed, _ := response["sealed_secrets"].(string)
	secrets, err := OpenSecrets(sealed, asked.RecipientKey)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(path[0].Raw)
	if len(secrets) != 4 || secrets["device_serial"] != asked.DeviceSerial ||
		secrets["certificate_sha256"] != hex.EncodeToString(digest[:]) {
		return nil, ErrRefused
	}
	keys, _ := secrets["table_keys"].(Fields)
	tables, _ := response["table_assignments"].([]any)
	nucHash, _ := secrets["nuc_hash"].(string)
	if len(tables) != 3 || len(keys) != 3 || !hex32.MatchString(nucHash) {
		return nil, ErrRefused
	}
	for _, table := range tables { // three keys and three tables, each of them with its own
		number, _ := table.(int64)
		key, _ := keys[strconv.FormatInt(number, 10)].(string)
		if !hex32.MatchString(key) {
			return nil, ErrRefused
		}
	}
	return secrets, unlessTwice(tables)
}

var hex32 = regexp.MustCompile("^[0-9a-fA-F]{64}$")

func unlessTwice(tables []any) error {
	for i, table := range tables {
		if slices.Contains(tables[:i], table) {
			return ErrRefused
		}
	}
	return nil
}

func sameKey(one, other crypto.PublicKey) bool {
	key, comparable := one.(interface{ Equal(crypto.PublicKey) bool })
	return comparable && key.Equal(other)
}

func certificates(texts ...string) ([]*x509.Certificate, error) {
	var read []*x509.Certificate
	for _, text := range texts {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, ErrRefused
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		read = append(read, certificate)
	}
	return read, nil
}

// VerifyChain returns the device serial of a chain (device first) that leads to the pinned root.
func VerifyChain(chain []string, root string, now time.Time) (string, error) {
	path, err := certificates(chain...)
	if err != nil {
		return "", err
	}
	return VerifyPath(path, root, now)
}

// VerifyPath does the same for certificates, each of which is issued by the next one.
func VerifyPath(path []*x509.Certificate, root string, now time.Time) (string, error) {
	pinned, err := certificates(root)
	if err != nil || len(path) == 0 {
		return "", ErrRefused
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(pinned[0])
	for _, certificate := range path[1:] {
		between.AddCert(certificate)
	}
	leaf := path[0]
	found, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return "", err
	}
	// Verify looks for any path: it must be the one that was sent.
	sent := append(slices.Clone(path), pinned[0])
	if !slices.ContainsFunc(found, func(chain []*x509.Certificate) bool {
		return slices.EqualFunc(chain, sent, (*x509.Certificate).Equal)
	}) {
		return "", ErrRefused
	}
	// Where an extension is missing, Verify takes all for allowed: it must be there.
	if leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 ||
		!slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || !knownKey(leaf.PublicKey) {
		return "", ErrRefused
	}
	return deviceSerial(leaf)
}

const deviceURN = "urn:birthmark:device:"

// deviceSerial wants one URN in its one spelling. A URL of Go keeps the spelling in Opaque.
func deviceSerial(leaf *x509.Certificate) (string, error) {
	var spellings []string
	for _, uri := range leaf.URIs {
		if spelling, found := strings.CutPrefix(uri.Scheme+":"+uri.Opaque, deviceURN); found {
			spellings = append(spellings, spelling)
		}
	}
	if len(spellings) != 1 {
		return "", ErrRefused
	}
	serial, err := url.PathUnescape(spellings[0])
	if err != nil || serial == "" || !utf8.ValidString(serial) || DeviceURN(serial) != deviceURN+spellings[0] {
		return "", ErrRefused
	}
	return serial, nil
}

// DeviceURN is how a device serial is written in a certificate: UTF-8, percent-encoded. QueryEscape is
// for forms, where a blank is a plus.
func DeviceURN(serial string) string {
	return deviceURN + strings.ReplaceAll(url.QueryEscape(serial), "+", "%20")
}

func knownKey(key crypto.PublicKey) bool {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return key.Curve == elliptic.P256() || key.Curve == elliptic.P384()
	case *rsa.PublicKey:
		return key.N.BitLen() >= 2048 && key.N.BitLen() <= 4096
	case ed25519.PublicKey:
		return true
	}
	return false
}

// Sign signs as a device.
func Sign(message []byte, key crypto.PrivateKey) ([]byte, error) {
	hashed := sha256.Sum256(message)
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		if key.Curve == elliptic.P384() {
			longer := sha512.Sum384(message)
			return ecdsa.SignASN1(rand.Reader, key, longer[:])
		}
		return ecdsa.SignASN1(rand.Reader, key, hashed[:])
	case *rsa.PrivateKey:
		return rsa.SignPKCS1v15(nil, key, crypto.SHA256, hashed[:])
	case ed25519.PrivateKey:
		return ed25519.Sign(key, message), nil
	}
	return nil, ErrRefused
}

// VerifySignature says whether a device signed. The kind of the key alone decides how it signs.
func VerifySignature(signature, message []byte, key crypto.PublicKey) bool {
	hashed := sha256.Sum256(message)
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P384() {
			longer := sha512.Sum384(message)
			return ecdsa.VerifyASN1(key, longer[:], signature)
		}
		return key.Curve == elliptic.P256() && ecdsa.VerifyASN1(key, hashed[:], signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, hashed[:], signature) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(key, message, signature)
	}
	return false
}

// SignedBytes is what the device signs: a prefix, and canonical JSON (RFC 8785) of all but the
// signature.
func SignedBytes(bundle Fields) ([]byte, error) {
	content := maps.Clone(bundle)
	delete(content, "signature")
	message := bytes.NewBufferString("birthmark-bundle-v1\x00")
	encoder := json.NewEncoder(message) // for the ASCII of a bundle it writes as the RFC says
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(content)
	return bytes.TrimSuffix(message.Bytes(), []byte("\n")), err
}

// RenewalBytes returns what a device signs to renew its certificate. The first three are DER; recipientKey may be nil.
func RenewalBytes(certificate, csr, recipientKey []byte, requestedAt string, supersede bool) []byte {
	digest := func(der []byte) string {
		sum := sha256.Sum256(der)
		return `"` + hex.EncodeToString(sum[:]) + `"`
	}
	recipient := "null"
	if recipientKey != nil {
		recipient = digest(recipientKey)
	}
	return fmt.Appendf(nil, "birthmark-renew-v1\x00"+
		`{"certificate_sha256":%s,"csr_sha256":%s,"recipient_key_sha256":%s,"requested_at":"%s","supersede":%t}`,
		digest(certificate), digest(csr), recipient, requestedAt, supersede)
}

const spelling = "2006-01-02T15:04:05.000000Z"

// How a bundle spells each of its texts.
var (
	lowerHex32 = regexp.MustCompile("^[0-9a-f]{64}$")
	lowerHex48 = regexp.MustCompile("^[0-9a-f]{96}$")
	lowerHex12 = regexp.MustCompile("^[0-9a-f]{24}$")
)

// VerifyBundle returns the device serial of a bundle that holds: form, time, certificates, signature.
func VerifyBundle(text, root string, now time.Time) (string, error) {
	if len(text) > 32_768 {
		return "", ErrRefused
	}
	bundle, err := Parse(text)
	if err != nil {
		return "", err
	}
	token, _ := bundle["camera_token"].(Fields)
	chain, err := texts(bundle["device_certificate_chain"])
	if err != nil || len(chain) != 2 || len(bundle) != 6 || len(token) != 4 ||
		bundle["version"] != int64(1) || !isIndex(token["table_id"]) || !isIndex(token["key_index"]) ||
		!spelt(lowerHex32, bundle["image_hash"]) || !spelt(lowerHex48, token["encrypted_nuc_hash"]) ||
		!spelt(lowerHex12, token["nonce"]) {
		return "", ErrRefused
	}
	var path []*x509.Certificate
	for _, each := range chain {
		der, err := fromBase64(each)
		if err != nil {
			return "", err
		}
		certificate, err := x509.ParseCertificate(der) // which takes nothing after it
		if err != nil {
			return "", err
		}
		path = append(path, certificate)
	}
	signed, _ := bundle["signature"].(string)
	signature, err := fromBase64(signed)
	if err != nil {
		return "", err
	}
	moment, _ := bundle["captured_at"].(string)
	captured, err := time.Parse(spelling, moment) // which takes a comma, too
	if err != nil || captured.Format(spelling) != moment || captured.After(now.Add(time.Hour)) {
		return "", ErrRefused
	}
	serial, err := VerifyPath(path, root, now)
	if err != nil {
		return "", err
	}
	if captured.Before(now) {
		if _, err := VerifyPath(path, root, captured); err != nil {
			return "", err
		}
	}
	message, err := SignedBytes(bundle)
	if err != nil {
		return "", err
	}
	if !VerifySignature(signature, message, path[0].PublicKey) {
		return "", ErrRefused
	}
	return serial, nil
}

// fromBase64 takes one spelling alone. Go ignores line ends, even where it is strict.
func fromBase64(text string) ([]byte, error) {
	if text == "" || strings.ContainsAny(text, "\r\n") {
		return nil, ErrRefused
	}
	return base64.StdEncoding.Strict().DecodeString(text)
}

func isIndex(value any) bool {
	number, found := value.(int64)
	return found && number >= 0
}

func spelt(pattern *regexp.Regexp, value any) bool {
	text, found := value.(string)
	return found && pattern.MatchString(text)
}

func texts(value any) ([]string, error) {
	items, _ := value.([]any)
	var read []string
	for _, item := range items {
		text, found := item.(string)
		if !found {
			return nil, ErrRefused
		}
		read = append(read, text)
	}
	return read, nil
}

// Fields is a JSON object that others wrote. Its numbers are int64.
type Fields = map[string]any

// half is an escaped half of a surrogate pair, once the pairs are gone.
var (
	pair = regexp.MustCompile(`\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}`)
	half = regexp.MustCompile(`\\u[dD][89a-fA-F]`)
)

// Parse reads an object strictly, as bundles want it: no name twice, no number but integers, no -0. Go
// would replace half of a surrogate pair and bytes that are no UTF-8.
func Parse(text string) (Fields, error) {
	if !json.Valid([]byte(text)) || !utf8.ValidString(text) ||
		half.MatchString(pair.ReplaceAllString(strings.ReplaceAll(text, `\\`, ""), "")) {
		return nil, ErrRefused
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	value, err := next(decoder)
	fields, found := value.(Fields)
	if err == nil && !found {
		err = ErrRefused
	}
	return fields, err
}

func next(decoder *json.Decoder) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	if number, found := token.(json.Number); found {
		if number == "-0" {
			return nil, ErrRefused
		}
		return strconv.ParseInt(number.String(), 10, 64)
	}
	begin, found := token.(json.Delim)
	if !found {
		return token, nil
	}
	fields, items := Fields{}, []any{}
	for decoder.More() {
		name := ""
		if begin == '{' {
			token, err := decoder.Token()
			if err != nil {
				return nil, err
			}
			name = token.(string)
			if _, twice := fields[name]; twice {
				return nil, ErrRefused
			}
		}
		value, err := next(decoder)
		if err != nil {
			return nil, err
		}
		fields[name], items = value, append(items, value)
	}
	if _, err := decoder.Token(); err != nil {
		return nil, err
	}
	if begin == '[' {
		return items, nil
	}
	return fields, nil
}

// Device is what the authority knows of one.
type Device struct {
	Status           string  `json:"status"`
	TableAssignments []int64 `json:"tableAssignments"`
}

// Judge returns why a well-formed token gets its verdict: it is PASS for "genuine" alone.
func Judge(tables, keysPerTable, tableID, keyIndex int64, opened bool, device *Device) string {
	switch {
	case tableID < 0 || tableID >= tables:
		return "unknown_table"
	case keyIndex < 0 || keyIndex >= keysPerTable:
		return "unknown_key_index"
	case !opened:
		return "not_opened"
	case device == nil:
		return "unknown_device"
	case !slices.Contains(device.TableAssignments, tableID):
		return "table_not_assigned"
	case device.Status != "active":
		return "device_" + device.Status
	}
	return "genuine"
}
