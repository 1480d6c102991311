// Package hashing computes what proves an audit event: the event hash that producers compute too, the
// optional signature over it, and the canonical text of a stored instant. It is pure: bytes in, bytes out.
package hashing

import (
	"crypto/sha256"
	"encoding/hex"
)

// HexLen is the length of an event hash or a signature in hex digits.
const HexLen = 2 * sha256.Size

// Fields are the members of an event that its hash covers, decoded from JSON, as valid UTF-8. An empty
// one, nil or not, counts as null, whether the event had it as "", as null or not at all.
type Fields struct {
	Action             []byte
	OrganizationID     []byte
	OutcomeDescription []byte
	PrincipalID        []byte
	Status             []byte
	TargetResourceID   []byte
	TargetResourceType []byte
	Timestamp          []byte // the text as received, not re-formatted
}

// AppendPrehash appends the text that the event hash is taken over: key:value pairs in the order of the
// keys, joined by "|", each value as ECMAScript's JSON.stringify gives it (ECMA-262, QuoteJSONString).
func AppendPrehash(dst []byte, f *Fields) []byte {
	dst = appendValue(append(dst, "action:"...), f.Action)
	dst = appendValue(append(dst, "|organizationId:"...), f.OrganizationID)
	dst = appendValue(append(dst, "|outcomeDescription:"...), f.OutcomeDescription)
	dst = appendValue(append(dst, "|principalId:"...), f.PrincipalID)
	dst = appendValue(append(dst, "|status:"...), f.Status)
	dst = appendValue(append(dst, "|targetResourceId:"...), f.TargetResourceID)
	dst = appendValue(append(dst, "|targetResourceType:"...), f.TargetResourceType)
	return appendValue(append(dst, "|timestamp:"...), f.Timestamp)
}

// Hex returns the event hash of a prehash: its SHA-256 as lowercase hex.
func Hex(prehash []byte) (hash [HexLen]byte) {
	sum := sha256.Sum256(prehash)
	hex.Encode(hash[:], sum[:])
	return hash
}

// AppendHex appends the event hash of f as lowercase hex. The prehash is built in *scratch, which keeps
// its capacity for the next call.
func AppendHex(dst []byte, f *Fields, scratch *[]byte) []byte {
	*scratch = AppendPrehash((*scratch)[:0], f)
	hash := Hex(*scratch)
	return append(dst, hash[:]...)
}

// AppendStoredHex appends the event hash of a stored row as lowercase hex, computed again from its
// columns: those in f, whose timestamp is not looked at, then timestamp_text (nil when it is null) and
// timestamp in microseconds since the Unix epoch. The prehash is left in *scratch as by AppendHex.
func AppendStoredHex(dst []byte, f *Fields, timestampText []byte, unixMicro int64, scratch *[]byte) []byte {
	var canonical [TimestampLen + len("+00")]byte
	stored := *f
	stored.Timestamp = timestampText
	if timestampText == nil {
		stored.Timestamp = AppendTimestamp(canonical[:0], unixMicro)
	}
	return AppendHex(dst, &stored, scratch)
}
