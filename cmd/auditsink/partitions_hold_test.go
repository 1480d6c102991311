package main

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
	"auditsink/partitions"
)

// TestPartitionsHold: holds are placed, listed and released, and what is wrong is said before anything is done.
func TestPartitionsHold(t *testing.T) {
	t.Parallel()
	databaseURL := testkit.Postgres(t, 18)
	s := settings{"POSTGRES_URL": databaseURL}
	succeed(t, s, "migrate", "up")
	for _, args := range [][]string{
		{"hold"},
		{"hold", "--reason", "x"},
		{"hold", "--everything"},
		{"hold", "--everything", "--reason", "  "},
		{"hold", "--everything", "--organization", "o", "--reason", "x"},
		{"hold", "--organization", "", "--reason", "x"},
		{"hold", "--from", "yesterday", "--reason", "x"},
		{"hold", "--from", "2026-02-01T00:00:00Z", "--until", "2026-02-01T00:00:00Z", "--reason", "x"},
		{"hold", "--list", "--everything"},
		{"hold", "--released", "--everything", "--reason", "x"},
		{"hold", "o", "--reason", "x"},
		{"release", "--reason", "x"},
		{"release", "1"},
		{"release", "one", "--reason", "x"},
		{"restore", "--reason", "x"},
		{"restore", "audit_log_2026_01"},
	} {
		code, _, errs := execute(t, s, append([]string{"partitions"}, args...)...)
		require.Equal(t, 2, code, "%q: %s", args, errs)
	}
	require.Zero(t, number(t, databaseURL, `SELECT count(*) FROM audit_legal_hold`))

	require.Equal(t, "hold 1 is placed; it ends with `auditsink partitions release 1 --reason TEXT`\n",
		succeed(t, s, "partitions", "hold", "--from", "2026-01-01T00:00:00+01:00", "--organization", "o\x1b[2J", "--correlation-id", "c", "--reason", "a case"))
	require.Contains(t, succeed(t, s, "partitions", "hold", "--everything", "--reason", "all"), "hold 2 is placed")
	list := succeed(t, s, "partitions", "hold", "--list")
	require.Regexp(t, `(?m)^1 +2025-12-31T23:00:00Z +- +"o\\x1b\[2J" +"c" +\S+ +\S+@\S+ \(postgres\) +"a case" +-$`, list)
	require.Regexp(t, `(?m)^2 +- +- +- +- `, list)

	require.Regexp(t, `^hold 1 was released at \S+ by \S+@\S+ \(postgres\): closed\n$`, succeed(t, s, "partitions", "release", "1", "--reason", "closed"))
	code, out, errs := execute(t, s, "partitions", "release", "1", "--reason", "again")
	require.Zero(t, code)
	require.Contains(t, out, ": closed")
	require.Equal(t, "note: hold 1 was released before\n", errs)
	code, _, errs = execute(t, s, "partitions", "release", "17", "--reason", "x")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "there is no such hold")

	var holds []partitions.Hold
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s, "partitions", "hold", "--list", "--json")), &holds))
	require.Len(t, holds, 1)
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s, "partitions", "hold", "--list", "--released", "--json")), &holds))
	require.Len(t, holds, 2)
	require.Equal(t, "closed", holds[0].ReleaseReason)
}

// TestPartitionsRestore: an operator takes a partition back in its grace period, and learns when it is too late.
func TestPartitionsRestore(t *testing.T) {
	t.Parallel()
	databaseURL := testkit.Postgres(t, 18)
	s := settings{"POSTGRES_URL": databaseURL}
	succeed(t, s, "migrate", "up")
	db, err := pgxpool.New(t.Context(), databaseURL)
	require.NoError(t, err)
	defer db.Close()
	_, err = db.Exec(t.Context(), `SELECT create_audit_log_partition('audit_log_2015_01', '2015-01-01 00:00+00', '2015-02-01 00:00+00')`)
	require.NoError(t, err)
	_, err = db.Exec(t.Context(), `UPDATE audit_leader SET term = 1, holder = 'me'`)
	require.NoError(t, err)
	retire := func(now time.Time) {
		t.Helper()
		_, err := partitions.Retire(t.Context(), db, partitions.Term{Number: 1, Holder: "me"}, now, partitions.Retention{Enforce: true, MinDays: 30, Grace: time.Hour})
		require.NoError(t, err)
	}
	const name = "audit_log_2015_01"
	require.Equal(t, name+" is attached, and not on its way out: nothing was changed\n", succeed(t, s, "partitions", "restore", name, "--reason", "a case"))
	now := time.Date(2015, 6, 1, 0, 0, 0, 0, time.UTC)
	retire(now)
	require.Equal(t, name+" is attached again, and held by legal hold 1\n", succeed(t, s, "partitions", "restore", name, "--reason", "a case"))
	require.EqualValues(t, 1, number(t, databaseURL, `SELECT count(*) FROM audit_log_partition_bounds() WHERE partition_name LIKE '%2015%'`))
	retire(now)
	require.EqualValues(t, 1, number(t, databaseURL, `SELECT count(*) FROM audit_log_partition_bounds() WHERE partition_name LIKE '%2015%'`), "it is held")
	succeed(t, s, "partitions", "release", "1", "--reason", "closed")
	retire(now)
	var restored partitions.Restored
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s, "partitions", "restore", name, "--reason", "another", "--json")), &restored))
	require.Equal(t, "restored", restored.What)
	require.Equal(t, "another", restored.Hold.Reason)
	succeed(t, s, "partitions", "release", fmt.Sprint(restored.Hold.ID), "--reason", "closed")
	retire(now)
	retire(now.Add(time.Hour))
	code, _, errs := execute(t, s, "partitions", "restore", name, "--reason", "too late")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "it was dropped at 20")
}
