package partitions

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

// takeTerm makes a leader of its own, as the lease would.
func takeTerm(t *testing.T, db *pgxpool.Pool, holder string) Term {
	t.Helper()
	return Term{Number: column[int64](t, db, `UPDATE audit_leader SET term = term + 1, holder = $1, acquired_at = now(), renewed_at = now(),
		expires_at = now() + interval '1 hour' RETURNING term`, holder)[0], Holder: holder}
}

func fill(t *testing.T, db *pgxpool.Pool, timestamp string, n int) {
	t.Helper()
	exec(t, db, `INSERT INTO audit_log (timestamp, action, status, details) SELECT $1, 'a', 'success', jsonb_build_object('n', n) FROM generate_series(1, $2) n`, at(timestamp), n)
}

func strs(done []Care) []string {
	all := make([]string, len(done))
	for i, c := range done {
		all[i] = c.String()
	}
	return all
}

const visible = `SELECT relallvisible > 0 AND relallvisible = relpages FROM pg_class WHERE oid = $1::text::regclass`

func TestUpkeep(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		_, err := EnsureFor(t.Context(), pool, now, 365*24*time.Hour, Schedule{}, []time.Time{at("2026-10-01"), at("2026-11-01")})
		require.NoError(t, err)
		fill(t, pool, "2026-10-05", 500)
		fill(t, pool, "2026-11-05", 700)
		fill(t, pool, "2026-12-05", 900)
		term := takeTerm(t, pool, "me")

		// November has ended, and late events may still come; only audit_log as a whole is due.
		done, err := Upkeep(t.Context(), pool, term, at("2026-12-01T00:59:59Z"))
		require.NoError(t, err)
		require.Equal(t, []string{"analyze audit_log_2026_10", "analyze audit_log", "vacuum and freeze audit_log_2026_10"}, strs(done))
		done, err = Upkeep(t.Context(), pool, term, at("2026-12-01T01:00:00Z"))
		require.NoError(t, err)
		require.Equal(t, []string{"analyze audit_log_2026_11", "vacuum and freeze audit_log_2026_11"}, strs(done))
		done, err = Upkeep(t.Context(), pool, term, at("2026-12-01T01:00:00Z"))
		require.NoError(t, err)
		require.Empty(t, done, "once is enough")

		require.Equal(t, []string{
			fmt.Sprintf("audit_log_2026_10 analyze done 500 2026-10-01 2026-11-01 %d t", term.Number), fmt.Sprintf("audit_log analyze done 2100 %d t", term.Number),
			fmt.Sprintf("audit_log_2026_10 vacuum done 500 2026-10-01 2026-11-01 %d t", term.Number), fmt.Sprintf("audit_log_2026_11 analyze done 700 2026-11-01 2026-12-01 %d t", term.Number),
			fmt.Sprintf("audit_log_2026_11 vacuum done 700 2026-11-01 2026-12-01 %d t", term.Number),
		}, column[string](t, pool, `SELECT concat_ws(' ', partition_name, kind, state, row_count, (lower_bound AT TIME ZONE 'UTC')::date, (upper_bound AT TIME ZONE 'UTC')::date, term,
			(detail->'seconds')::float8 > 0) FROM audit_partition_event WHERE kind <> 'create' ORDER BY id`))
		for partition, want := range map[string]bool{"audit_log_2026_10": true, "audit_log_2026_11": true, "audit_log_2026_12": false} {
			require.Equal(t, []bool{want}, column[bool](t, pool, visible, partition), partition)
		}
		// All rows are frozen: the oldest transaction that counts is later than the one that wrote them.
		require.Equal(t, []bool{true, true, false}, column[bool](t, pool, `
			SELECT age(relfrozenxid) < age((SELECT min(xmin::text::bigint)::text::xid FROM audit_log WHERE tableoid = c.oid)) FROM pg_class c
			WHERE relname IN ('audit_log_2026_10', 'audit_log_2026_11', 'audit_log_2026_12') ORDER BY relname`))
		require.Equal(t, []float64{2100}, column[float64](t, pool, `SELECT reltuples::float8 FROM pg_class WHERE oid = 'audit_log'::regclass`))

		// A partition of the same name that was made anew is another one.
		exec(t, pool, `DROP TABLE audit_log_2026_10`)
		exec(t, pool, `INSERT INTO audit_partition_event (partition_name, kind, state) VALUES ('audit_log_2026_10', 'vacuum', 'verified')`)
		_, err = EnsureFor(t.Context(), pool, now, 365*24*time.Hour, Schedule{}, []time.Time{at("2026-10-01")})
		require.NoError(t, err)
		fill(t, pool, "2026-10-05", 10)
		done, err = Upkeep(t.Context(), pool, term, at("2026-12-01T01:00:00Z"))
		require.NoError(t, err)
		require.Equal(t, []string{"analyze audit_log_2026_10", "vacuum and freeze audit_log_2026_10"}, strs(done))
		done, err = Upkeep(t.Context(), pool, term, at("2026-12-01T01:00:00Z"))
		require.NoError(t, err)
		require.Empty(t, done)
		// A day later the whole is analyzed again.
		exec(t, pool, `UPDATE audit_partition_event SET updated_at = updated_at - interval '24 hours' WHERE partition_name = 'audit_log'`)
		done, err = Upkeep(t.Context(), pool, term, at("2026-12-01T01:00:00Z"))
		require.NoError(t, err)
		require.Equal(t, []string{"analyze audit_log"}, strs(done))
	})
}

// A leader that has been deposed touches nothing.
func TestUpkeepOfTheDeposed(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		_, err := EnsureFor(t.Context(), pool, now, 365*24*time.Hour, Schedule{}, []time.Time{at("2026-10-01")})
		require.NoError(t, err)
		fill(t, pool, "2026-10-05", 100)
		old := takeTerm(t, pool, "me")
		term := takeTerm(t, pool, "you")
		done, err := Upkeep(t.Context(), pool, old, now)
		require.ErrorIs(t, err, ErrDeposed)
		require.Empty(t, done)

		done, err = Upkeep(t.Context(), pool, term, now)
		require.NoError(t, err)
		require.Len(t, done, 3)
		// What is left to the deposed are the statements that can't be in a transaction.
		exec(t, pool, `DELETE FROM audit_partition_event WHERE kind = 'vacuum'`)
		before := column[int64](t, pool, `SELECT pg_stat_get_vacuum_count('audit_log_2026_10'::regclass)`)
		done, err = Upkeep(t.Context(), pool, old, now)
		require.ErrorIs(t, err, ErrDeposed)
		require.Empty(t, done)
		require.Equal(t, before, column[int64](t, pool, `SELECT pg_stat_get_vacuum_count('audit_log_2026_10'::regclass)`))
		require.Empty(t, column[string](t, pool, `SELECT kind FROM audit_partition_event WHERE kind = 'vacuum'`))

		// One that is deposed in the middle of a VACUUM doesn't say that it is done; its successor does it again.
		u := &upkeep{session: dial(t, db), term: term}
		require.NoError(t, u.prepare(t.Context()))
		d := &due{Care: Care{Partition: "audit_log_2026_10", Kind: "vacuum"}, bounds: make([]*time.Time, 2)}
		err = u.statement(t.Context(), d, "1min", `UPDATE audit_leader SET term = term + 1, holder = 'she'`)
		require.ErrorIs(t, err, ErrDeposed)
		require.Equal(t, []string{"verified"}, column[string](t, pool, `SELECT state FROM audit_partition_event WHERE kind = 'vacuum'`))
		done, err = Upkeep(t.Context(), pool, Term{Number: term.Number + 1, Holder: "she"}, now)
		require.NoError(t, err)
		require.Equal(t, []string{"vacuum and freeze audit_log_2026_10"}, strs(done))
		require.Equal(t, []string{"done"}, column[string](t, pool, `SELECT state FROM audit_partition_event WHERE kind = 'vacuum'`))
	})
}

// What is locked, and what can't be frozen yet, is left for later, keeps nothing else from being done, and comes last in the next round.
func TestUpkeepLeavesWhatItCanNotDo(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "10")
		_, err := EnsureFor(t.Context(), pool, now, 365*24*time.Hour, Schedule{}, []time.Time{at("2026-09-01"), at("2026-10-01"), at("2026-11-01")})
		require.NoError(t, err)
		for _, month := range []string{"2026-09-05", "2026-10-05"} {
			fill(t, pool, month, 100)
		}
		reader := begin(t, pool)
		exec(t, reader, `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`)
		require.Len(t, column[int](t, reader, `SELECT 1 FROM audit_leader`), 1)
		fill(t, pool, "2026-11-05", 100) // which the reader's snapshot is older than
		other := begin(t, pool)
		exec(t, other, `LOCK TABLE audit_log_2026_09 IN SHARE UPDATE EXCLUSIVE MODE`)
		term := takeTerm(t, pool, "me")
		done, err := Upkeep(t.Context(), pool, term, now)
		require.NoError(t, err)
		whole := "analyze audit_log"
		if column[bool](t, pool, `SELECT current_setting('server_version_num')::int < 180000`)[0] { // it comes to the partitions too
			whole = "left for later: analyze audit_log: somebody else has it locked"
		}
		require.Equal(t, []string{
			"left for later: analyze audit_log_2026_09: somebody else has it locked", "analyze audit_log_2026_10", "analyze audit_log_2026_11", whole,
			"left for later: vacuum and freeze audit_log_2026_09: somebody else has it locked", "vacuum and freeze audit_log_2026_10",
			"left for later: vacuum and freeze audit_log_2026_11: not everything could be frozen: rows are still arriving, an old transaction (pg_stat_activity, backend_xmin) holds it up, or the table belongs to another role",
		}, strs(done))
		require.Equal(t, []string{"audit_log_2026_09 verified", "audit_log_2026_10 done", "audit_log_2026_11 verified"}, column[string](t, pool, `
			SELECT partition_name || ' ' || state FROM audit_partition_event WHERE kind = 'vacuum' ORDER BY 1`))
		// A statement that takes too long is ended, and the others have their turn first.
		exec(t, pool, `UPDATE audit_partition_event SET updated_at = clock_timestamp() WHERE kind = 'vacuum' AND partition_name = 'audit_log_2026_09'`)
		require.NoError(t, other.Rollback(t.Context()))
		require.NoError(t, reader.Rollback(t.Context()))
		done, err = Upkeep(t.Context(), pool, term, now)
		require.NoError(t, err)
		require.Equal(t, []string{"analyze audit_log_2026_09", "vacuum and freeze audit_log_2026_11", "vacuum and freeze audit_log_2026_09"}, strs(done))
		require.Equal(t, []string{"audit_log_2026_09 done", "audit_log_2026_10 done", "audit_log_2026_11 done"}, column[string](t, pool, `
			SELECT partition_name || ' ' || state FROM audit_partition_event WHERE kind = 'vacuum' ORDER BY 1`))

		u := &upkeep{session: dial(t, db), term: term}
		require.NoError(t, u.prepare(t.Context()))
		d := &due{Care: Care{Partition: "audit_log_2026_12", Kind: "vacuum"}, bounds: make([]*time.Time, 2)}
		require.NoError(t, u.statement(t.Context(), d, "50ms", `SELECT pg_sleep(60)`))
		require.Contains(t, d.Left, "takes longer")
		require.Equal(t, []string{"0"}, column[string](t, u.session, `SHOW statement_timeout`))
		require.Equal(t, []string{"2ms"}, column[string](t, u.session, `SHOW vacuum_cost_delay`))
	})
}

// A partition that came without our settings gets those it lacks; what a DBA set stays.
func TestUpkeepSetsWhatIsMissing(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		exec(t, pool, `
			CREATE TABLE "Restored by hand" PARTITION OF audit_log FOR VALUES FROM ('2027-01-01 00:00+00') TO ('2027-02-01 00:00+00');
			CREATE TABLE audit_log_2027_02 PARTITION OF audit_log FOR VALUES FROM ('2027-02-01 00:00+00') TO ('2027-03-01 00:00+00')
				WITH (autovacuum_freeze_min_age = 7, fillfactor = 90)`)
		_, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 1})
		require.NoError(t, err)
		term := takeTerm(t, pool, "me")
		done, err := Upkeep(t.Context(), pool, term, now)
		require.NoError(t, err)
		require.Equal(t, []string{"set what autovacuum is to do for Restored by hand", "set what autovacuum is to do for audit_log_2027_02", "analyze audit_log"}, strs(done))
		options := `SELECT reloptions::text FROM pg_class WHERE relname = $1`
		require.Equal(t, column[string](t, pool, options, "audit_log_2026_12"), column[string](t, pool, options, "Restored by hand"))
		require.Equal(t, []string{"{autovacuum_freeze_min_age=7,fillfactor=90,autovacuum_vacuum_insert_threshold=100000,autovacuum_vacuum_insert_scale_factor=0.1,autovacuum_analyze_scale_factor=0.05}"},
			column[string](t, pool, options, "audit_log_2027_02"))
		require.Equal(t, []string{"Restored by hand 4", "audit_log_2027_02 3"}, column[string](t, pool,
			`SELECT partition_name || ' ' || jsonb_array_length(detail->'settings') FROM audit_partition_event WHERE kind = 'settings' ORDER BY 1`))
		done, err = Upkeep(t.Context(), pool, term, now)
		require.NoError(t, err)
		require.Empty(t, done)
	})
}

// Two who lead for a moment, and a standby: nothing bad comes of it.
func TestUpkeepOnAStandby(t *testing.T) {
	db := testkit.Postgres(t, 18)
	pool := openMigrated(t, db)
	_, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 0})
	require.NoError(t, err)
	term := takeTerm(t, pool, "me")
	_, err = Upkeep(t.Context(), open(t, db, "default_transaction_read_only", "on"), term, now)
	require.ErrorContains(t, err, "25006")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Upkeep(ctx, pool, term, now)
	require.ErrorIs(t, err, context.Canceled)
}

// Behind a pooler in transaction mode, what runs in a transaction is done, and what needs a session of its own is left, with the reason.
func TestUpkeepThroughAPooler(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			db := testkit.Postgres(t, version)
			pool := openMigrated(t, db)
			_, err := EnsureFor(t.Context(), pool, now, 365*24*time.Hour, Schedule{}, []time.Time{at("2026-10-01")})
			require.NoError(t, err)
			fill(t, pool, "2026-10-05", 100)
			exec(t, pool, `ALTER TABLE audit_log_2026_12 RESET (autovacuum_freeze_min_age)`)
			term := takeTerm(t, pool, "me")
			pooled := open(t, testkit.OwnPgBouncer(t, db), "default_query_exec_mode", "exec")
			done, err := Upkeep(t.Context(), pooled, term, now)
			require.NoError(t, err)
			const pooler = ": the connection goes through a pooler, where it can't be throttled: set AUDITSINK_POSTGRES_MAINTENANCE_URL to the server's own address"
			whole := "analyze audit_log"
			if version < 18 {
				whole = "left for later: analyze audit_log" + pooler
			}
			require.Equal(t, []string{
				"set what autovacuum is to do for audit_log_2026_12", "analyze audit_log_2026_10", whole, "left for later: vacuum and freeze audit_log_2026_10" + pooler,
			}, strs(done))
			require.Equal(t, []string{"0"}, column[string](t, pooled, `SELECT setting FROM pg_settings WHERE name = 'lock_timeout'`), "others' sessions are as they were")
			require.Empty(t, column[string](t, pool, `SELECT state FROM audit_partition_event WHERE kind = 'vacuum'`))
		})
	}
}

// With the settings that create_audit_log_partition() gives, autovacuum freezes what has come without being told to.
func TestAutovacuumFreezes(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: version, Settings: map[string]string{"autovacuum_naptime": "1s", "fsync": "off", "maintenance_work_mem": "64MB"}})
			db, err := server.CreateDatabase(t.Context())
			require.NoError(t, err)
			pool := openMigrated(t, db)
			_, err = Ensure(t.Context(), pool, now, Schedule{Ahead: 0})
			require.NoError(t, err)
			// Half of the partition's threshold is not enough, and the indexes would only make it slow.
			exec(t, pool, `DO $$ DECLARE i record; BEGIN FOR i IN SELECT indexrelid::regclass AS name FROM pg_index WHERE indrelid = 'audit_log'::regclass AND NOT indisprimary LOOP
				EXECUTE 'DROP INDEX ' || i.name; END LOOP; END $$`)
			fill(t, pool, "2026-12-05", 50_000)
			exec(t, pool, `CREATE TABLE other WITH (autovacuum_vacuum_insert_threshold = 1000) AS SELECT FROM generate_series(1, 2000)`)
			vacuumed := func(table string) int64 {
				return column[int64](t, pool, `SELECT pg_stat_get_autovacuum_count($1::text::regclass)`, table)[0]
			}
			require.Eventually(t, func() bool { return vacuumed("other") > 0 }, testTimeout, testTick, "autovacuum has been here")
			require.Zero(t, vacuumed("audit_log_2026_12"))
			fill(t, pool, "2026-12-05", 60_000)
			require.Eventually(t, func() bool { return vacuumed("audit_log_2026_12") > 0 }, testTimeout, testTick)
			require.Eventually(t, func() bool { // an autovacuum may have come in the middle of an insert
				return column[bool](t, pool, `SELECT relallvisible > 0.9 * relpages FROM pg_class WHERE relname = 'audit_log_2026_12'`)[0]
			}, testTimeout, testTick)
			require.Equal(t, []bool{true}, column[bool](t, pool, `
				SELECT age(relfrozenxid) <= age((SELECT max(xmin::text::bigint)::text::xid FROM audit_log)) FROM pg_class WHERE relname = 'audit_log_2026_12'`))
		})
	}
}
