package hashing

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// vector is one case of testdata/event_hash.json.
type vector struct {
	Event     []byte `json:"event"`
	Prehash   string `json:"prehash"`
	SHA256    string `json:"sha256"`
	Signature string `json:"hmac_sha256_key_secret"`
}

// readVectors returns the cases that existing producers agreed on.
func readVectors(tb testing.TB) []vector {
	tb.Helper()
	text, err := os.ReadFile("testdata/event_hash.json")
	require.NoError(tb, err)
	var vectors []vector
	require.NoError(tb, json.Unmarshal(text, &vectors))
	require.Len(tb, vectors, 120)
	return vectors
}

// fields returns what the hash covers of an event, as encoding/json decodes it.
func (v *vector) fields(tb testing.TB) *Fields {
	tb.Helper()
	var event map[string]any
	require.NoError(tb, json.Unmarshal(v.Event, &event))
	text := func(key string) []byte {
		s, _ := event[key].(string)
		return []byte(s)
	}
	return &Fields{
		Action: text("action"), OrganizationID: text("organizationId"), OutcomeDescription: text("outcomeDescription"),
		PrincipalID: text("principalId"), Status: text("status"), TargetResourceID: text("targetResourceId"),
		TargetResourceType: text("targetResourceType"), Timestamp: text("timestamp"),
	}
}

func TestVectors(t *testing.T) {
	signer := NewSigner([]byte("secret"))
	var scratch []byte
	for i, v := range readVectors(t) {
		f := v.fields(t)
		prehash := AppendPrehash(nil, f)
		require.Equal(t, v.Prehash, string(prehash), "case %d", i)
		hash := Hex(prehash)
		require.Equal(t, v.SHA256, string(hash[:]), "case %d", i)
		require.Equal(t, v.SHA256, string(AppendHex(nil, f, &scratch)), "case %d", i)
		require.Equal(t, v.Prehash, string(scratch), "case %d", i)
		require.Equal(t, v.Signature, Signature([]byte("secret"), v.SHA256), "case %d", i)
		require.Equal(t, v.Signature, string(signer.AppendHex(nil, hash[:])), "case %d", i)
	}
}

func TestSignatureNeedsTheKey(t *testing.T) {
	v := readVectors(t)[0]
	require.NotEqual(t, v.Signature, Signature([]byte("Secret"), v.SHA256))
	require.NotEqual(t, Signature([]byte("secret"), v.SHA256), Signature([]byte("secret"), v.Prehash))
}
