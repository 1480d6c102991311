package partitions

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A broken index on retention_policy costs no row: what is removed has been read whole before.
func TestABrokenIndexRemovesNothing(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		month(t, db, "2015-01-01")
		exec(t, db, `INSERT INTO audit_log (timestamp, action, status, retention_policy)
			SELECT '2015-01-01 00:00+00'::timestamptz + make_interval(secs => n), 'a', 'success', 'minimal' FROM generate_series(1, 20000) n`)
		exec(t, db, `ANALYZE audit_log_2015_01`)
		term, now := lead(t, db, "me"), at("2015-08-01")
		skip := func(ready bool) {
			exec(t, db, `UPDATE pg_index SET indisready = $1 WHERE indexrelid = 'audit_log_2015_01_retention_policy_idx'::regclass`, ready)
		}
		skip(false)
		row(t, db, "2015-01-10", "standard")
		skip(true)
		for range 2 {
			done, err := Retire(t.Context(), db, term, now, enforced)
			require.ErrorContains(t, err, "REINDEX TABLE public.audit_log_2015_01")
			require.Empty(t, done)
		}
		exec(t, db, `REINDEX TABLE audit_log_2015_01`)
		require.Empty(t, retire(t, db, term, now))
		require.Equal(t, []int64{1}, column[int64](t, db, `SELECT count(*) FROM audit_log WHERE retention_policy = 'standard'`))
	})
}

// What somebody puts in the place of a partition on its way out, or into it once it is detached, isn't dropped in its stead.
func TestWhatIsPutInItsPlaceStays(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		b := month(t, db, "2015-01-01")
		row(t, db, "2015-01-10", "minimal")
		term, now := lead(t, db, "me"), at("2015-08-01")
		r := &round{db: db, term: term, now: now, retention: enforced}
		w, err := lookAt(t.Context(), db, b.Name)
		require.NoError(t, err)
		require.NoError(t, r.take(t.Context(), w, verify))

		exec(t, db, `ALTER TABLE audit_log DETACH PARTITION audit_log_2015_01; ALTER TABLE audit_log_2015_01 RENAME TO kept;
			CREATE TABLE audit_log_2015_01 (LIKE kept INCLUDING ALL)`)
		require.Equal(t, []string{"2015_01 waits"}, retire(t, db, term, now), "it is not the table that was verified")
		exec(t, db, `ALTER TABLE audit_log ATTACH PARTITION audit_log_2015_01 FOR VALUES FROM ('2015-01-01 00:00+00') TO ('2015-02-01 00:00+00')`)
		require.Equal(t, []string{"2015_01 refused", "2015_01 verified", "2015_01 detached"}, retire(t, db, term, now))
		require.Equal(t, []string{"2015_01 dropped"}, retire(t, db, term, now.Add(enforced.Grace)))

		exec(t, db, `ALTER TABLE kept RENAME TO audit_log_2015_01;
			ALTER TABLE audit_log ATTACH PARTITION audit_log_2015_01 FOR VALUES FROM ('2015-01-01 00:00+00') TO ('2015-02-01 00:00+00')`)
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached"}, retire(t, db, term, now))
		exec(t, db, `DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE audit_log_2015_01 DROP CONSTRAINT %I', conname) FROM pg_constraint
			WHERE conrelid = 'audit_log_2015_01'::regclass AND contype = 'c' AND conname <> 'audit_log_status_check'); END $$`)
		exec(t, db, `INSERT INTO audit_log_2015_01 (id, timestamp, action, status, retention_policy) VALUES (9, '2015-02-01 00:00+00', 'a', 'success', 'minimal')`)
		done, err := Retire(t.Context(), db, term, now.Add(enforced.Grace), enforced)
		require.ErrorContains(t, err, "rows from outside of its range")
		require.Empty(t, done)
		exec(t, db, `DELETE FROM audit_log_2015_01 WHERE id = 9`)
		require.Equal(t, []string{"2015_01 dropped"}, retire(t, db, term, now.Add(enforced.Grace)))
	})
}
