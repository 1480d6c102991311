package main

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"auditsink/internal/indexes"
	"auditsink/internal/testkit"
)

// TestMigrateIndexes: a new database gets the indexes of the settings, one with events keeps its own until the command changes them.
func TestMigrateIndexes(t *testing.T) {
	t.Parallel()
	databaseURL := testkit.Postgres(t, 18)
	full := settings{"POSTGRES_URL": databaseURL}
	lean := full.with(settings{"INDEX_PROFILE": "lean"})
	parents := func() string {
		return value(t, databaseURL, `SELECT string_agg(indexrelid::regclass::text, ' ' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = 'audit_log'::regclass AND NOT indisprimary`)
	}
	const leanNames = "audit_log_archived_idx audit_log_bloom_idx audit_log_organization_timestamp_idx audit_log_principal_timestamp_idx audit_log_retention_policy_idx audit_log_timestamp_idx"
	require.NotContains(t, succeed(t, lean, "migrate", "up"), "other indexes")
	require.Equal(t, leanNames, parents())
	statement(t, databaseURL, `INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'a', 'success')`)

	require.NotContains(t, succeed(t, lean, "migrate", "up"), "other indexes")
	require.Contains(t, succeed(t, full, "migrate", "up"), "audit_log has other indexes (lean, immediate) than the settings say (full, immediate): `auditsink migrate indexes --execute`")
	require.Equal(t, leanNames, parents())

	for _, args := range [][]string{{"--profile", "slim"}, {"--build", "later"}, {"now"}} {
		code, _, _ := execute(t, full, append([]string{"migrate", "indexes"}, args...)...)
		require.Equal(t, 2, code, "%q", args)
	}
	out := succeed(t, full, "migrate", "indexes")
	require.Contains(t, out, "make audit_log_hash_idx of the indexes of its partitions\n")
	require.Contains(t, out, "dry run, nothing was changed: from lean, immediate to full, immediate")
	require.Equal(t, leanNames, parents())
	var plan, done indexesReport
	require.NoError(t, json.Unmarshal([]byte(succeed(t, full, "migrate", "indexes", "--json")), &plan))
	require.NoError(t, json.Unmarshal([]byte(succeed(t, full, "migrate", "indexes", "--execute", "--json")), &done))
	require.True(t, plan.DryRun)
	require.NotEmpty(t, plan.Steps)
	require.Equal(t, plan.Steps, done.Steps)
	require.Empty(t, done.Left)
	require.EqualValues(t, 16, number(t, databaseURL, `SELECT count(*) FROM pg_index WHERE indrelid = 'audit_log'::regclass AND NOT indisprimary`))
	require.Contains(t, succeed(t, full, "migrate", "indexes", "--execute"), "full, immediate; 0 steps done, 0 left")

	// What is in the way is named.
	statement(t, databaseURL, `CREATE TABLE audit_log_bloom_idx ()`)
	code, out, errs := execute(t, lean, "migrate", "indexes", "--build", "deferred", "--execute")
	require.Equal(t, 0, code, out, errs)
	require.Equal(t, "audit_log_timestamp_brin_idx", parents(), "audit_log itself needs no such name")
	code, out, errs = execute(t, lean, "migrate", "indexes", "--execute", "--json")
	require.Equal(t, 1, code, out)
	require.Contains(t, errs, "audit_log_bloom_idx")
	require.NoError(t, json.Unmarshal([]byte(out), &done))
	require.Equal(t, indexes.Choice{Profile: indexes.Lean, Build: indexes.Immediate}, done.To)
	require.Empty(t, done.Steps, "that is seen before anything is done")
	require.NotEmpty(t, done.Left)
	statement(t, databaseURL, `DROP TABLE audit_log_bloom_idx`)
	require.Contains(t, succeed(t, lean, "migrate", "indexes", "--execute"), "0 left")
	require.Equal(t, leanNames, parents())
}
