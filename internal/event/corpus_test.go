package event

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"auditsink/hashing"
)

func readJSON(tb testing.TB, path string, into any) {
	tb.Helper()
	text, err := os.ReadFile(path)
	require.NoError(tb, err)
	require.NoError(tb, json.Unmarshal(text, into))
}

// corpusCase is one record of testdata/events.json.
type corpusCase struct {
	Name   string `json:"name"`
	Value  []byte `json:"value"` // null is a tombstone
	Expect string `json:"expect"`
	Reason string `json:"reason"`
}

func readCorpus(tb testing.TB) []corpusCase {
	tb.Helper()
	var corpus []corpusCase
	readJSON(tb, "testdata/events.json", &corpus)
	require.Len(tb, corpus, 52)
	return corpus
}

// vector is one case of hashing's golden file.
type vector struct {
	Event     []byte `json:"event"`
	Prehash   string `json:"prehash"`
	SHA256    string `json:"sha256"`
	Signature string `json:"hmac_sha256_key_secret"`
}

func readVectors(tb testing.TB) []vector {
	tb.Helper()
	var vectors []vector
	readJSON(tb, "../../hashing/testdata/event_hash.json", &vectors)
	require.Len(tb, vectors, 120)
	return vectors
}

func TestCorpus(t *testing.T) {
	d := NewDecoder(rules)
	for _, c := range readCorpus(t) {
		t.Run(c.Name, func(t *testing.T) {
			row, q := d.Take(&Record{Timestamp: clock.UnixMilli(), Value: c.Value}, clock)
			if c.Expect == "row" {
				require.Nil(t, q)
				require.NotNil(t, row)
				return
			}
			require.Nil(t, row)
			require.Equal(t, c.Reason, q.Reason.String(), q.Detail)
		})
	}
}

// TestVectors takes each vector as it is, with its hash and signature added, and again from the stored columns.
func TestVectors(t *testing.T) {
	signed := rules
	signed.SignatureKey = []byte("secret")
	d := NewDecoder(signed)
	for i, v := range readVectors(t) {
		plain := string(v.Event)
		proven := `{"hash":"` + v.SHA256 + `","signature":"` + v.Signature + `",` + plain[1:]
		for _, value := range []string{plain, proven} {
			row, q := d.Take(&Record{Timestamp: clock.UnixMilli(), Value: []byte(value)}, clock)
			require.Nil(t, q, "case %d: %+v", i, q)
			require.Equal(t, v.Prehash, string(row.Prehash), "case %d", i)
			require.Equal(t, v.SHA256, string(row.Hash[:]), "case %d", i)
			require.Equal(t, v.SHA256, storedHash(row), "case %d", i)
		}
	}
}

// storedHash is the hash as `verify` computes it again, from what the table keeps.
func storedHash(row *Row) string {
	return string(hashing.AppendStoredHex(nil, &hashing.Fields{
		Action: row.Action, OrganizationID: row.OrganizationID, OutcomeDescription: row.OutcomeDescription,
		PrincipalID: row.PrincipalID, Status: row.Status, TargetResourceID: row.TargetResourceID,
		TargetResourceType: row.TargetResourceType,
	}, row.TimestampText, row.Timestamp, new([]byte)))
}
