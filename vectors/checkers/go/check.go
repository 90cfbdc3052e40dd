package main

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"
)

// group and test have the fields of all files; each file uses some.
type group struct {
	Type, Salt, InfoSuffix, Root, PublicKey, Now string
	DeviceSerial, DevicePublicKey, DeviceLabel   string
	RecipientKind, RecipientLabel, KeyKind       string
	Tables, KeysPerTable                         int64
	Tests                                        []test
}

type test struct {
	TcID                           int
	Comment, Result                string
	MasterKey, DerivedKey, NucHash string
	Bundle, SignedBytes, Signature string
	Response                       json.RawMessage
	SealedSecrets                  string
	Secrets                        Fields
	Now, DeviceSerial, DeviceUrn   string
	Reason                         string
	KeyIndex, TableID              int64
	CameraToken                    CameraToken
	Chain                          []string
	Certificate, Csr, RequestedAt  string
	RecipientKey                   *string
	Opened, Supersede              bool
	Device                         *Device
}

// Each says whether what came out is what the test says; a refusal is an error.
var files = []struct {
	name   string
	agrees func(group, test) (bool, error)
}{
	{"key_derivation", keyDerivation},
	{"camera_token", cameraToken},
	{"provisioning_response", provisioningResponse},
	{"certificate_chain", certificateChain},
	{"bundle_signature", bundleSignature},
	{"renewal_proof", renewalProof},
	{"verdict", verdict},
}

func keyDerivation(g group, t test) (bool, error) {
	key, err := DeriveKey(bytesOf(t.MasterKey), uint32(t.KeyIndex), bytesOf(g.Salt), bytesOf(g.InfoSuffix))
	return hex.EncodeToString(key) == t.DerivedKey, err
}

func cameraToken(g group, t test) (bool, error) {
	nucHash, err := Open(t.CameraToken, bytesOf(t.MasterKey), g.KeysPerTable)
	if same := hex.EncodeToString(nucHash) == t.NucHash; err != nil || !same || t.Result != "valid" {
		return same, err
	}
	again, err := Seal(nucHash, bytesOf(t.MasterKey), t.CameraToken.TableID, t.CameraToken.KeyIndex,
		bytesOf(t.CameraToken.Nonce))
	return strings.EqualFold(again.EncryptedNucHash, t.CameraToken.EncryptedNucHash), err
}

func provisioningResponse(g group, t test) (bool, error) {
	key, err := testKey(g.RecipientLabel, g.RecipientKind)
	if err != nil {
		return false, nil
	}
	if g.Type == "Sealed" {
		secrets, err := OpenSecrets(t.SealedSecrets, key)
		return reflect.DeepEqual(secrets, t.Secrets), err
	}
	response, err := Parse(string(t.Response))
	if err != nil {
		return false, err
	}
	now, err := time.Parse(time.RFC3339, g.Now)
	if err != nil {
		return false, nil
	}
	asked := Asked{g.DeviceSerial, publicKey(g.DevicePublicKey), key, g.Root}
	secrets, err := OpenResponse(response, asked, now)
	return reflect.DeepEqual(secrets, t.Secrets), err
}

// testKey is the test key that a label stands for (docs/vectors.md): everybody can make it.
func testKey(label, kind string) (crypto.PrivateKey, error) {
	secret, longer := sha256.Sum256([]byte(label)), sha512.Sum384([]byte(label))
	switch kind {
	case "X25519":
		return ecdh.X25519().NewPrivateKey(secret[:])
	case "P-384":
		return ecdh.P384().NewPrivateKey(longer[:])
	case "P-256":
		return ecdh.P256().NewPrivateKey(secret[:])
	case "EC P-256":
		return ecdsa.ParseRawPrivateKey(elliptic.P256(), secret[:])
	case "EC P-384":
		return ecdsa.ParseRawPrivateKey(elliptic.P384(), longer[:])
	case "Ed25519":
		return ed25519.NewKeyFromSeed(secret[:]), nil
	}
	return rsaKey(label)
}

var rsaKeys = map[string]*rsa.PrivateKey{} // to find the primes takes a second

func rsaKey(label string) (*rsa.PrivateKey, error) {
	if key, found := rsaKeys[label]; found {
		return key, nil
	}
	one, e := big.NewInt(1), big.NewInt(65537)
	p, q := prime(label+", prime 1"), prime(label+", prime 2")
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	key := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537},
		D:         new(big.Int).ModInverse(e, phi),
		Primes:    []*big.Int{p, q},
	}
	key.Precompute()
	rsaKeys[label] = key
	return key, key.Validate()
}

// prime is the first prime at or above the number of a label.
func prime(label string) *big.Int {
	var blocks []byte
	for block := range 4 {
		digest := sha256.Sum256(fmt.Appendf(nil, "%s, block %d", label, block))
		blocks = append(blocks, digest[:]...)
	}
	candidate := new(big.Int).SetBytes(blocks)
	for _, bit := range []int{1023, 1022, 0} {
		candidate.SetBit(candidate, bit, 1)
	}
	for !candidate.ProbablyPrime(20) {
		candidate.Add(candidate, big.NewInt(2))
	}
	return candidate
}

// publicKey is nil where there is none, which no signature fits.
func publicKey(text string) crypto.PublicKey {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil
	}
	key, _ := x509.ParsePKIXPublicKey(block.Bytes)
	return key
}

func certificateChain(g group, t test) (bool, error) {
	now, err := time.Parse(time.RFC3339, t.Now)
	if err != nil {
		return false, err
	}
	serial, err := VerifyChain(t.Chain, g.Root, now)
	return serial == t.DeviceSerial && DeviceURN(serial) == t.DeviceUrn, err
}

func bundleSignature(g group, t test) (bool, error) {
	if g.Type == "Bundle" {
		now, err := time.Parse(time.RFC3339, g.Now)
		if err != nil {
			return false, nil
		}
		serial, err := VerifyBundle(t.Bundle, g.Root, now)
		return serial == t.DeviceSerial, err
	}
	bundle, err := Parse(t.Bundle)
	if err != nil {
		return false, err
	}
	message, err := SignedBytes(bundle)
	if err != nil {
		return false, err
	}
	return signsAlike(g, t, message)
}

func renewalProof(g group, t test) (bool, error) {
	var recipientKey []byte
	if t.RecipientKey != nil {
		recipientKey = bytesOf(*t.RecipientKey)
	}
	message := RenewalBytes(bytesOf(t.Certificate), bytesOf(t.Csr), recipientKey, t.RequestedAt, t.Supersede)
	return signsAlike(g, t, message)
}

func signsAlike(g group, t test, message []byte) (bool, error) {
	if hex.EncodeToString(message) != t.SignedBytes {
		return false, nil
	}
	if !VerifySignature(bytesOf(t.Signature), message, publicKey(g.PublicKey)) {
		return false, ErrRefused
	}
	key, err := testKey(g.DeviceLabel, g.KeyKind)
	if err != nil {
		return false, nil
	}
	signature, err := Sign(message, key)
	same := strings.HasPrefix(g.KeyKind, "EC ") || bytes.Equal(signature, bytesOf(t.Signature))
	return same && VerifySignature(signature, message, publicKey(g.PublicKey)), err
}

func verdict(g group, t test) (bool, error) {
	reason := Judge(g.Tables, g.KeysPerTable, t.TableID, t.KeyIndex, t.Opened, t.Device)
	if reason == t.Reason && reason != "genuine" {
		return true, ErrRefused // FAIL, and for that reason
	}
	return reason == t.Reason, nil
}

// right says whether a test came out as it should. To accept something else is no refusal.
func right(agrees bool, refused error, result string) bool {
	if refused != nil {
		return result != "valid"
	}
	return agrees && result != "invalid"
}

func bytesOf(text string) []byte {
	decoded, err := hex.DecodeString(text)
	if err != nil {
		return nil
	}
	return decoded
}

func check(directory string) (int, error) {
	wrong := 0
	for _, file := range files {
		var document struct{ TestGroups []group }
		text, err := os.ReadFile(filepath.Join(directory, file.name+"_test.json"))
		if err != nil {
			return 0, err
		}
		if err := json.Unmarshal(text, &document); err != nil {
			return 0, err
		}
		ran := 0
		for _, g := range document.TestGroups {
			for _, t := range g.Tests {
				ran++
				if agrees, refused := file.agrees(g, t); !right(agrees, refused, t.Result) {
					wrong++
					fmt.Printf("%s %d: %s: %s\n", file.name, t.TcID, t.Comment, t.Result)
				}
			}
		}
		fmt.Printf("%s: %d tests\n", file.name, ran)
	}
	return wrong, nil
}

func sealOrOpen(command string) error {
	var given struct {
		NucHash     string      `json:"nuc_hash"`
		MasterKey   string      `json:"master_key"`
		TableID     int64       `json:"table_id"`
		KeyIndex    int64       `json:"key_index"`
		CameraToken CameraToken `json:"camera_token"`
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(os.Stdin); err != nil {
		return err
	}
	if err := json.Unmarshal(text.Bytes(), &given); err != nil {
		return err
	}
	masterKey := bytesOf(given.MasterKey)
	if command == "open" {
		nucHash, err := Open(given.CameraToken, masterKey, 1000)
		if err == nil {
			fmt.Println(hex.EncodeToString(nucHash))
		}
		return err
	}
	nonce := make([]byte, 12)
	rand.Read(nonce) // never fails, since Go 1.24
	token, err := Seal(bytesOf(given.NucHash), masterKey, given.TableID, given.KeyIndex, nonce)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(token)
}

// `check check <vectors>`, or `check seal` / `check open` with JSON on standard input.
func main() {
	wrong, err := 0, error(nil)
	if len(os.Args) == 3 && os.Args[1] == "check" {
		wrong, err = check(os.Args[2])
	} else {
		err = sealOrOpen(os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil || wrong > 0 {
		os.Exit(1)
	}
}
