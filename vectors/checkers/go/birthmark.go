// The Birthmark protocol in Go 1.24 or later, with the standard library alone. Copy this file.
package main

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"
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

// VerifyChain returns the device serial of a chain (device first) that leads to the pinned root.
func VerifyChain(chain []string, root string, now time.Time) (string, error) {
	var path []*x509.Certificate
	for _, text := range append([]string{root}, chain...) {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return "", ErrRefused
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", err
		}
		path = append(path, certificate)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(path[0])
	for _, certificate := range path[2:] {
		between.AddCert(certificate)
	}
	leaf := path[1]
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return "", err
	}
	// Where an extension is missing, Verify takes all for allowed: it must be there.
	if leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 ||
		!slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || !knownKey(leaf.PublicKey) {
		return "", ErrRefused
	}
	for _, uri := range leaf.URIs {
		if serial, found := strings.CutPrefix(uri.String(), "urn:birthmark:device:"); found {
			return url.PathUnescape(serial)
		}
	}
	return "", ErrRefused
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
