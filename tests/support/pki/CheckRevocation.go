// Checks with Go's standard library whether certificates are revoked.
//
// Each line of standard input names DER files, separated by tabs: the root, a device certificate, its
// issuer, and then either an OCSP response (*.ocsp) or revocation lists (*.crl). For each line the
// program verifies the path and all signatures, and prints "good", "revoked", "revoked: REASON",
// "unknown", or "refused: " and an error.
package main

import (
	"bufio"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"time"
)

// RFC 5280, section 5.3.1. A list has no entry for `unspecified`.
var reasons = map[int]string{
	1: "keyCompromise", 2: "cACompromise", 3: "affiliationChanged", 4: "superseded",
	5: "cessationOfOperation", 6: "certificateHold", 9: "privilegeWithdrawn", 10: "aACompromise",
}

var (
	ecdsaWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	basicResponse   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		word, err := judge(strings.Split(lines.Text(), "\t"))
		if err != nil {
			word = "refused: " + err.Error()
		}
		fmt.Println(strings.ReplaceAll(word, "\n", " "))
	}
}

func judge(files []string) (string, error) {
	var path [3]*x509.Certificate // root, leaf, issuer
	for place := range path {
		certificate, err := x509.ParseCertificate(read(files[place]))
		if err != nil {
			return "", err
		}
		path[place] = certificate
	}
	root, leaf, issuer := path[0], path[1], path[2]
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	options.Roots.AddCert(root)
	options.Intermediates.AddCert(issuer)
	if _, err := leaf.Verify(options); err != nil {
		return "", err
	}
	if strings.HasSuffix(files[3], ".ocsp") {
		return byResponse(read(files[3]), leaf, issuer)
	}
	return byLists(files[3:], root, leaf, issuer)
}

func read(file string) []byte {
	content, err := os.ReadFile(file)
	if err != nil {
		panic(err)
	}
	return content
}

// --- lists

// byLists looks up the leaf in the list of its issuer, and the issuer in the list of the root.
func byLists(files []string, root, leaf, issuer *x509.Certificate) (string, error) {
	pairs := [][2]*x509.Certificate{{leaf, issuer}, {issuer, root}}
	found := 0
	for _, file := range files {
		list, err := x509.ParseRevocationList(read(file))
		if err != nil {
			return "", err
		}
		for _, pair := range pairs {
			if list.CheckSignatureFrom(pair[1]) != nil {
				continue // the list of another CA
			}
			if time.Now().Before(list.ThisUpdate) || time.Now().After(list.NextUpdate) {
				return "", errors.New("a list is not valid now")
			}
			found++
			for _, entry := range list.RevokedCertificateEntries {
				if entry.SerialNumber.Cmp(pair[0].SerialNumber) == 0 {
					return revoked(entry.ReasonCode), nil
				}
			}
		}
	}
	if found != len(pairs) {
		return "", fmt.Errorf("%d lists are for this path", found)
	}
	return "good", nil
}

func revoked(reason int) string {
	if name, known := reasons[reason]; known {
		return "revoked: " + name
	}
	return "revoked"
}

// --- OCSP (RFC 6960, section 4.2.1)

type response struct {
	Status asn1.Enumerated
	Bytes  responseBytes `asn1:"explicit,optional,tag:0"`
}

type responseBytes struct {
	Type    asn1.ObjectIdentifier
	Content []byte
}

type basic struct {
	Data      responseData
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
	Signers   []asn1.RawValue `asn1:"explicit,optional,tag:0"`
}

type responseData struct {
	Raw        asn1.RawContent
	Version    int `asn1:"explicit,optional,default:0,tag:0"`
	Responder  asn1.RawValue
	ProducedAt time.Time `asn1:"generalized"`
	Statuses   []status
	Extensions []pkix.Extension `asn1:"explicit,optional,tag:1"`
}

type status struct {
	ID         certificateID
	Status     asn1.RawValue
	ThisUpdate time.Time        `asn1:"generalized"`
	NextUpdate time.Time        `asn1:"generalized,explicit,optional,tag:0"`
	Extensions []pkix.Extension `asn1:"explicit,optional,tag:1"`
}

type certificateID struct {
	Hash      pkix.AlgorithmIdentifier
	Name, Key []byte
	Serial    *big.Int
}

type revocation struct {
	At     time.Time       `asn1:"generalized"`
	Reason asn1.Enumerated `asn1:"explicit,optional,tag:0"`
}

func byResponse(der []byte, leaf, issuer *x509.Certificate) (string, error) {
	var outer response
	if err := parse(der, &outer, ""); err != nil {
		return "", err
	}
	if outer.Status != 0 || !outer.Bytes.Type.Equal(basicResponse) {
		return "", fmt.Errorf("the status of the response is %d", outer.Status)
	}
	var content basic
	if err := parse(outer.Bytes.Content, &content, ""); err != nil {
		return "", err
	}
	if err := checkSignature(content, issuer); err != nil {
		return "", err
	}
	for _, each := range content.Data.Statuses {
		if each.ID.Serial.Cmp(leaf.SerialNumber) != 0 {
			continue
		}
		if time.Now().Before(each.ThisUpdate) || time.Now().After(each.NextUpdate) {
			return "", errors.New("the response is not valid now")
		}
		return word(each.Status)
	}
	return "", errors.New("the response is about other certificates")
}

// checkSignature verifies that the issuer delegated the signer, and that the signer signed.
func checkSignature(content basic, issuer *x509.Certificate) error {
	if len(content.Signers) != 1 || !content.Algorithm.Algorithm.Equal(ecdsaWithSHA256) {
		return errors.New("no delegated responder signed with ecdsa-with-SHA256")
	}
	signer, err := x509.ParseCertificate(content.Signers[0].FullBytes)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(issuer)
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	if _, err := signer.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: usage}); err != nil {
		return err
	}
	signature := content.Signature.RightAlign()
	return signer.CheckSignature(x509.ECDSAWithSHA256, content.Data.Raw, signature)
}

func word(choice asn1.RawValue) (string, error) {
	switch choice.Tag {
	case 0:
		return "good", nil
	case 1:
		var told revocation
		if err := parse(choice.FullBytes, &told, "tag:1"); err != nil {
			return "", err
		}
		return revoked(int(told.Reason)), nil
	case 2:
		return "unknown", nil
	}
	return "", fmt.Errorf("unknown status %d", choice.Tag)
}

// parse fails also if bytes are left over.
func parse(der []byte, into any, parameters string) error {
	rest, err := asn1.UnmarshalWithParams(der, into, parameters)
	if err == nil && len(rest) > 0 {
		err = errors.New("bytes are left over")
	}
	return err
}
