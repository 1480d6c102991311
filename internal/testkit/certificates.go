package testkit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// CertificateFiles are the paths of the PEM files that Certificates wrote. Keys are PKCS #8.
type CertificateFiles struct {
	CA         string // signs both others
	ServerCert string // for localhost, 127.0.0.1 and ::1
	ServerKey  string
	ClientCert string // common name "client"
	ClientKey  string
}

// Certificates makes a certificate authority and a server's and a client's certificate, valid from an
// hour ago for a day, in dir. Two calls make authorities that do not trust each other.
func Certificates(dir string) (*CertificateFiles, error) {
	files := &CertificateFiles{
		CA:         filepath.Join(dir, "ca.pem"),
		ServerCert: filepath.Join(dir, "server.pem"),
		ServerKey:  filepath.Join(dir, "server-key.pem"),
		ClientCert: filepath.Join(dir, "client.pem"),
		ClientKey:  filepath.Join(dir, "client-key.pem"),
	}
	authority := &issuer{now: time.Now()}
	if err := authority.issue(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "auditsink test authority"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, files.CA, ""); err != nil {
		return nil, err
	}
	if err := authority.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "localhost"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}, files.ServerCert, files.ServerKey); err != nil {
		return nil, err
	}
	if err := authority.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "client"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, files.ClientCert, files.ClientKey); err != nil {
		return nil, err
	}
	return files, nil
}

// issuer signs certificates. The first is its own and signs itself.
type issuer struct {
	now         time.Time
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	serial      int64
}

// issue writes a certificate and its key as PEM. An empty keyFile keeps the key in memory only.
func (i *issuer) issue(template *x509.Certificate, certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	i.serial++
	template.SerialNumber = big.NewInt(i.serial)
	template.NotBefore = i.now.Add(-time.Hour)
	template.NotAfter = i.now.Add(24 * time.Hour)
	if i.certificate == nil {
		i.certificate, i.key = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.certificate, key.Public(), i.key)
	if err != nil {
		return fmt.Errorf("sign the certificate of %s: %w", template.Subject, err)
	}
	if err := writePEM(certFile, "CERTIFICATE", der); err != nil {
		return err
	}
	if keyFile == "" {
		return nil
	}
	der, err = x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	return writePEM(keyFile, "PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		return fmt.Errorf("write a certificate file: %w", err)
	}
	return nil
}
