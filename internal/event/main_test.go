package event

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is the wall clock and the record's timestamp of tests.
var clock = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// rules are the defaults of the configuration.
var rules = Rules{MaxBytes: 1 << 20, Horizon: 2555 * 24 * time.Hour}

// required are the members that every event needs.
const required = `"timestamp":"2026-11-15T10:30:00.000Z","action":"data.read","status":"success"`

// with returns a good event with further members.
func with(members string) string { return "{" + required + "," + members + "}" }

// takeBy takes a value by a fresh decoder with the given rules.
func takeBy(t testing.TB, r Rules, value string) (*Row, *Quarantine) {
	t.Helper()
	row, q := NewDecoder(r).Take(&Record{Timestamp: clock.UnixMilli(), Value: []byte(value)}, clock)
	require.NotEqual(t, row == nil, q == nil, "exactly one result")
	return row, q
}

// taken returns the row of a value that has to be taken.
func taken(t testing.TB, value string) *Row {
	t.Helper()
	row, q := takeBy(t, rules, value)
	if q != nil {
		t.Fatalf("%.200s: %s: %s", value, q.Reason, q.Detail)
	}
	return row
}

// refused checks that a value is quarantined for a reason, and returns the detail.
func refused(t testing.TB, reason Reason, value string) string {
	t.Helper()
	row, q := takeBy(t, rules, value)
	require.Nil(t, row, "%.200q: want %s", value, reason)
	require.Equal(t, reason.String(), q.Reason.String(), "%.200q: %s", value, q.Detail)
	require.NotEmpty(t, q.Detail)
	return q.Detail
}
