package query_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"auditsink/internal/query"
)

func TestTTL(t *testing.T) {
	at := func(text string) time.Time {
		stamp, err := time.Parse(time.RFC3339, text)
		require.NoError(t, err)
		return stamp
	}
	now := at("2026-11-25T12:34:56Z")
	for _, c := range []struct {
		what, from, to string
		longest, want  time.Duration
	}{
		{"a past month", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z", time.Hour, time.Hour},
		{"years", "2020-01-01T00:00:00Z", "2026-11-01T00:00:00Z", 24 * time.Hour, 24 * time.Hour},
		{"into this month", "2026-10-01T00:00:00Z", "2026-11-01T00:00:00.000001Z", time.Hour, 15 * time.Minute},
		{"past days of this month", "2026-11-02T00:00:00Z", "2026-11-25T00:00:00Z", time.Hour, 15 * time.Minute},
		{"into today", "2026-11-02T00:00:00Z", "2026-11-25T00:00:01Z", time.Hour, 2 * time.Minute},
		{"today", "2026-11-25T00:00:00Z", "2026-11-25T12:00:00Z", time.Hour, 2 * time.Minute},
		{"the running hour", "2026-11-25T12:00:00Z", "2026-11-25T12:30:00Z", time.Hour, 5 * time.Second},
		{"until now", "2026-11-25T00:00:00Z", "2026-11-25T12:34:56Z", time.Hour, 5 * time.Second},
		{"beyond now", "2020-01-01T00:00:00Z", "2027-01-01T00:00:00Z", time.Hour, 5 * time.Second},
		{"to come", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z", time.Hour, 5 * time.Second},
		{"another zone's day is another day of UTC", "2026-11-24T00:00:00+14:00", "2026-11-25T13:00:00+14:00", time.Hour, 15 * time.Minute},
		{"no longer than asked: month", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z", time.Minute, time.Minute},
		{"no longer than asked: today", "2026-11-25T00:00:00Z", "2026-11-25T12:00:00Z", time.Minute, time.Minute},
		{"no longer than asked: hour", "2026-11-25T12:00:00Z", "2027-01-01T00:00:00Z", time.Second, time.Second},
		{"none asked", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z", 0, 0},
		{"empty", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", time.Hour, 0},
		{"backward", "2026-02-01T00:00:00Z", "2026-01-01T00:00:00Z", time.Hour, 0},
	} {
		require.Equal(t, c.want, query.TTL(now, at(c.from), at(c.to), c.longest), c.what)
	}
	require.Equal(t, 5*time.Second, query.TTL(at("2026-12-01T00:00:01Z"), at("2026-11-01T00:00:00Z"), at("2026-12-01T00:00:00Z"), time.Hour), "a month that has just ended")
	require.Equal(t, 10*time.Minute, query.TTL(at("2026-12-01T00:10:00Z"), at("2026-11-01T00:00:00Z"), at("2026-12-01T00:00:00Z"), time.Hour), "and is still being added to")
	require.Equal(t, time.Hour, query.TTL(at("2026-12-01T01:00:00Z"), at("2026-11-01T00:00:00Z"), at("2026-12-01T00:00:00Z"), time.Hour), "or no more")
	require.Equal(t, 2*time.Minute, query.TTL(now.In(time.FixedZone("", 3600)), at("2026-11-25T00:00:00Z"), at("2026-11-25T12:00:00Z"), time.Hour), "now in another zone")
}

// TestTTLAlways: never below 0 or above what is asked, and never longer for a range that ends later.
func TestTTLAlways(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		moment := func(name string) time.Time {
			return time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC).Add(time.Duration(rapid.Int64Range(-90*86400, 90*86400).Draw(t, name)) * time.Second)
		}
		now, from, to := moment("now"), moment("from"), moment("to")
		longest := time.Duration(rapid.Int64Range(0, int64(24*time.Hour)).Draw(t, "longest"))
		life := query.TTL(now, from, to, longest)
		require.GreaterOrEqual(t, life, time.Duration(0))
		require.LessOrEqual(t, life, longest)
		if from.Before(to) {
			require.LessOrEqual(t, query.TTL(now, from, to.Add(time.Hour), longest), life)
		}
		if from.Before(to) && to.After(now) {
			require.LessOrEqual(t, life, 5*time.Second)
		}
	})
}
