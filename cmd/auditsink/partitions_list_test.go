package main

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
	"auditsink/partitions"
)

func TestPartitionsListAndStats(t *testing.T) {
	t.Parallel()
	databaseURL := testkit.Postgres(t, 18)
	s := settings{"POSTGRES_URL": databaseURL}
	succeed(t, s, "migrate", "up")
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // nothing is lost
	_, err = conn.Exec(t.Context(), `
		SELECT create_audit_log_partition('audit_log_2020_01', '2020-01-01 00:00+00', '2020-02-01 00:00+00');
		SELECT create_audit_log_partition('oldest', NULL, '1999-12-31 12:00+00');
		INSERT INTO audit_log (timestamp, action, status) SELECT '2020-01-15 10:30+00'::timestamptz + n * interval '1 s', 'a', 'success' FROM generate_series(0, 99) n;
		ANALYZE audit_log_2020_01;
		CREATE TABLE audit_log_2019_12 ()`)
	require.NoError(t, err)
	hot := time.Now().UTC().Format("audit_log_2006_01")

	list := succeed(t, s, "partitions", "list")
	require.Regexp(t, `^PARTITION +FROM +TO +STATE +ROWS +SIZE +GOES +WHY\noldest +unbounded +1999-12-31T12:00:00Z +past +- +\d+\.\d kB +2000-01-30 +it is empty, .*\naudit_log_2020_01 +2020-01-01 +2020-02-01 +past +100 +\d+\.\d kB +2027-01-30 +kept until 2027-01-30T00:00:00Z, for 2555 days by policy standard\n`, list)
	require.Regexp(t, `(?m)^`+hot+` +\S+ +\S+ +hot +- +\d+\.\d kB +\S+ +it is empty, `, list)
	var stats []partitions.Stat
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s, "partitions", "list", "--json")), &stats))
	require.GreaterOrEqual(t, len(stats), 3)
	require.Equal(t, "audit_log_2020_01", stats[1].Name)
	require.EqualValues(t, 100, *stats[1].Rows)
	require.Nil(t, stats[0].Rows)

	text := succeed(t, s, "partitions", "stats")
	require.Regexp(t, `(?m)^audit_log_2020_01 +2020-01-01 +2020-02-01 +past +100 +\d+\.\d kB +\d+\.\d kB +2020-01-15T10:30:00Z +2020-01-15T10:31:39Z +0 +2\S+Z +- +-$`, text)
	require.Regexp(t, `(?m)^\d+ partitions, 0 detached; 100 rows; tables .*, indexes .*, together .*$`, text)
	require.Regexp(t, `(?m)^ready until 2\S+Z; nobody has led yet$`, text)
	require.Contains(t, text, "the first to go is oldest: it is empty, ")
	require.Contains(t, text, "warning: oldest is expired, and kept since AUDITSINK_RETENTION_ENFORCE is false: ")
	require.Contains(t, text, "warning: audit_log_2019_12 is named like a partition and no partition of audit_log")
	var report struct {
		Partitions []partitions.Stat
		Totals     partitions.Totals
		ReadyUntil time.Time `json:"ready_until"`
		Leader     struct {
			Term int64
		}
		Recommendations []partitions.Advice
	}
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s, "partitions", "stats", "--json")), &report))
	require.Len(t, report.Partitions, len(stats))
	require.Equal(t, len(stats), report.Totals.Partitions)
	require.True(t, report.ReadyUntil.After(time.Now()))
	require.Equal(t, []string{"audit_log_2019_12"}, report.Recommendations[0].Partitions)
}

func TestSizeText(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 kB", 1 << 40: "1.0 TB", 1<<63 - 1: "8192.0 PB"} {
		require.Equal(t, want, sizeText(bytes))
	}
}
