package hashing

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
)

// Signer computes signatures with one key. It is not safe for concurrent use.
type Signer struct {
	mac hash.Hash
	sum [sha256.Size]byte
}

// NewSigner returns a signer for the key shared with the producers.
func NewSigner(key []byte) *Signer {
	return &Signer{mac: hmac.New(sha256.New, key)}
}

// AppendHex appends the signature of an event hash: HMAC-SHA256 (RFC 2104) over the hash's hex digits,
// itself as lowercase hex.
func (s *Signer) AppendHex(dst, hexHash []byte) []byte {
	s.mac.Reset()
	s.mac.Write(hexHash)
	return hex.AppendEncode(dst, s.mac.Sum(s.sum[:0]))
}

// Signature returns the signature of an event hash given in lowercase hex, as Signer.AppendHex does.
func Signature(key []byte, hexHash string) string {
	return string(NewSigner(key).AppendHex(nil, []byte(hexHash)))
}
