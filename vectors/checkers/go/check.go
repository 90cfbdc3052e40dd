package main

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// group and test have the fields of all files; each file uses some.
type group struct {
	Type, Salt, InfoSuffix, Root, PublicKey string
	Tables, KeysPerTable                    int64
	Tests                                   []test
}

type test struct {
	TcID                           int
	Comment, Result                string
	MasterKey, DerivedKey, NucHash string
	SignedBytes, Signature         string
	Now, DeviceSerial, Reason      string
	KeyIndex, TableID              int64
	CameraToken                    CameraToken
	Chain                          []string
	Opened                         bool
	Device                         *Device
}

// Each says whether a test was accepted with what it says.
var files = []struct {
	name    string
	accepts func(group, test) bool
}{
	{"key_derivation", keyDerivation},
	{"camera_token", cameraToken},
	{"certificate_chain", certificateChain},
	{"bundle_signature", bundleSignature},
	{"verdict", verdict},
}

func keyDerivation(g group, t test) bool {
	key, err := DeriveKey(bytesOf(t.MasterKey), uint32(t.KeyIndex), bytesOf(g.Salt), bytesOf(g.InfoSuffix))
	return err == nil && hex.EncodeToString(key) == t.DerivedKey
}

func cameraToken(g group, t test) bool {
	nucHash, err := Open(t.CameraToken, bytesOf(t.MasterKey), g.KeysPerTable)
	if err != nil || hex.EncodeToString(nucHash) != t.NucHash {
		return false
	}
	again, err := Seal(nucHash, bytesOf(t.MasterKey), t.CameraToken.TableID, t.CameraToken.KeyIndex,
		bytesOf(t.CameraToken.Nonce))
	return err == nil && strings.EqualFold(again.EncryptedNucHash, t.CameraToken.EncryptedNucHash)
}

func certificateChain(g group, t test) bool {
	now, err := time.Parse(time.RFC3339, t.Now)
	if err != nil {
		return false
	}
	serial, err := VerifyChain(t.Chain, g.Root, now)
	return err == nil && serial == t.DeviceSerial
}

func bundleSignature(g group, t test) bool {
	block, _ := pem.Decode([]byte(g.PublicKey))
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	return err == nil && VerifySignature(bytesOf(t.Signature), bytesOf(t.SignedBytes), key)
}

func verdict(g group, t test) bool {
	reason := Judge(g.Tables, g.KeysPerTable, t.TableID, t.KeyIndex, t.Opened, t.Device)
	if reason != t.Reason {
		fmt.Printf("verdict %d: %s in place of %s\n", t.TcID, reason, t.Reason)
		os.Exit(1)
	}
	return reason == "genuine"
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
			if g.Type == "Bundle" { // whole bundles: see the checker in Python
				continue
			}
			for _, t := range g.Tests {
				ran++
				if accepted := file.accepts(g, t); t.Result != "acceptable" && accepted != (t.Result == "valid") {
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
