package sample_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"auditsink/internal/event"
	"auditsink/internal/sample"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

type parsed struct {
	Timestamp          time.Time
	Action, Status     string
	OrganizationID     string `json:"organizationId"`
	CorrelationID      string `json:"correlationId"`
	DataClassification string
	Hash               string
	OutcomeDescription string
	SessionContext     map[string]string
}

func TestEveryEventIsARow(t *testing.T) {
	g := sample.New(1)
	d := event.NewDecoder(event.Rules{MaxBytes: 1 << 20, Horizon: time.Hour})
	const n = 20_000
	var size, hashed, phi, described, failed, unkeyed, detailed int
	actions, organizations := map[string]int{}, map[string]int{}
	for i := range n {
		at := now.Add(time.Duration(i) * time.Millisecond)
		key, value := g.Next(at)
		row, q := d.Take(&event.Record{Timestamp: at.UnixMilli(), Key: key, Value: value}, at)
		require.Nil(t, q, "%+v: %s", q, value)
		require.Equal(t, 0, bytes.Count(value, []byte("\n")))

		var e parsed
		require.NoError(t, json.Unmarshal(value, &e))
		require.False(t, e.Timestamp.After(at))
		require.Less(t, at.Sub(e.Timestamp), 3*time.Second)
		require.NotEmpty(t, e.SessionContext["sessionId"])
		if e.OrganizationID != "" {
			require.Equal(t, e.OrganizationID, string(key))
			organizations[e.OrganizationID]++
		} else {
			require.Equal(t, e.CorrelationID, string(key))
			unkeyed++
		}
		if e.Hash != "" {
			require.Equal(t, string(row.Hash[:]), e.Hash)
			hashed++
		}
		if row.Details != nil {
			detailed++
		}
		if e.DataClassification == "PHI" {
			phi++
		}
		if e.OutcomeDescription != "" {
			described++
		}
		if e.Status == "failure" {
			failed++
		}
		actions[e.Action]++
		size += len(value)
	}
	require.InDelta(t, 600, size/n, 60, "average size")
	require.GreaterOrEqual(t, len(actions), 15)
	require.GreaterOrEqual(t, len(organizations), 10)
	require.Equal(t, n, detailed)
	for name, share := range map[string]int{"hashed": hashed, "PHI": phi, "described": described, "failed": failed, "without organization": unkeyed} {
		require.Greater(t, share, n/100, name)
		require.Less(t, share, n*9/10, name)
	}
}

func TestDeterministic(t *testing.T) {
	a, b, other := sample.New(7), sample.New(7), sample.New(8)
	differ := 0
	for i := range 1000 {
		at := now.Add(time.Duration(i) * time.Second)
		ka, va := a.Next(at)
		kb, vb := b.Next(at)
		_, vo := other.Next(at)
		require.Equal(t, string(ka), string(kb))
		require.Equal(t, string(va), string(vb))
		if !bytes.Equal(va, vo) {
			differ++
		}
	}
	require.Equal(t, 1000, differ)
}

func TestPrompt(t *testing.T) {
	g := sample.New(7)
	g.Prompt()
	for range 100 {
		_, value := g.Next(now)
		var e parsed
		require.NoError(t, json.Unmarshal(value, &e))
		require.True(t, now.Equal(e.Timestamp), e.Timestamp)
	}
}

// What else an event holds doesn't depend on whether all carry their hash.
func TestHashAll(t *testing.T) {
	some, all := sample.New(7), sample.New(7)
	all.HashAll()
	for range 100 {
		_, value := some.Next(now)
		_, hashed := all.Next(now)
		var a, b map[string]any
		require.NoError(t, json.Unmarshal(value, &a))
		require.NoError(t, json.Unmarshal(hashed, &b))
		require.Contains(t, b, "hash")
		if a["hash"] == nil {
			delete(b, "hash")
			delete(b, "hashAlgorithm")
		}
		require.Equal(t, a, b)
	}
}

// What else an event holds doesn't depend on whether what has no column is one text, which holds it too.
func TestFlat(t *testing.T) {
	deep, flat := sample.New(7), sample.New(7)
	flat.Flat()
	for range 100 {
		_, value := deep.Next(now)
		_, flattened := flat.Next(now)
		var a, b, context map[string]any
		require.NoError(t, json.Unmarshal(value, &a))
		require.NoError(t, json.Unmarshal(flattened, &b))
		require.NoError(t, json.Unmarshal([]byte(b["context"].(string)), &context)) //nolint:forcetypeassert,errcheck // panics
		require.Contains(t, context, "sessionContext")
		delete(b, "context")
		maps.Copy(b, context)
		require.Equal(t, a, b)
	}
}

func TestNextKeepsNothingOfTheCallers(t *testing.T) {
	g := sample.New(3)
	key, value := g.Next(now)
	k, v := string(key), string(value)
	// Appending to the key must not run into the value that lies behind it.
	_ = append(key, "overwritten"...)
	for range 100 {
		g.Next(now)
	}
	require.Equal(t, k, string(key))
	require.Equal(t, v, string(value))
}

func TestOneAllocationAnEvent(t *testing.T) {
	g := sample.New(4)
	g.Next(now)
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { g.Next(now) }), 1.1)
}

func BenchmarkNext(b *testing.B) {
	g := sample.New(5)
	b.ReportAllocs()
	for b.Loop() {
		_, v := g.Next(now)
		b.SetBytes(int64(len(v)))
	}
}
