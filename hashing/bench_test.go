package hashing_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/hashing"
	"auditsink/internal/sample"
)

// sampleFields are what is hashed of events of the benchmark's kind.
func sampleFields(b *testing.B) []hashing.Fields {
	b.Helper()
	generator := sample.New(1)
	all := make([]hashing.Fields, 1000)
	for i := range all {
		_, value := generator.Next(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))
		event := map[string]any{}
		require.NoError(b, json.Unmarshal(value, &event))
		text := func(key string) []byte {
			s, _ := event[key].(string)
			return []byte(s)
		}
		all[i] = hashing.Fields{
			Action: text("action"), OrganizationID: text("organizationId"), OutcomeDescription: text("outcomeDescription"), PrincipalID: text("principalId"),
			Status: text("status"), TargetResourceID: text("targetResourceId"), TargetResourceType: text("targetResourceType"), Timestamp: text("timestamp"),
		}
	}
	return all
}

// BenchmarkAppendHex is an event's hash, and the text that it is taken over.
func BenchmarkAppendHex(b *testing.B) {
	events := sampleFields(b)
	var dst, scratch []byte
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		dst = hashing.AppendHex(dst[:0], &events[i%len(events)], &scratch)
	}
}

// BenchmarkAppendTimestamp is an instant's canonical text.
func BenchmarkAppendTimestamp(b *testing.B) {
	var dst []byte
	b.ReportAllocs()
	for i := int64(0); b.Loop(); i++ {
		dst = hashing.AppendTimestamp(dst[:0], 1_774_536_902_855_123+i*1009)
	}
}
