package partitions

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/testkit"
	"auditsink/migrations"
)

const (
	testTimeout = time.Minute
	testTick    = 20 * time.Millisecond
)

// now is on another day, and in another month, than UTC's in half of the world.
var now = at("2026-12-31T23:30:00Z")

func TestMain(m *testing.M) {
	maybeRetire()
	testkit.Main(m)
}

// versions runs a test on the oldest and the newest Postgres that are supported, each with a new database's schema.
func versions(t *testing.T, test func(t *testing.T, db string)) {
	t.Helper()
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			db := testkit.Postgres(t, version)
			_, err := migrations.Apply(t.Context(), db)
			require.NoError(t, err)
			test(t, db)
		})
	}
}

// open opens a pool; parameters are pairs of a name and a value for the URL.
func open(t *testing.T, db string, parameters ...string) *pgxpool.Pool {
	t.Helper()
	u, err := url.Parse(db)
	require.NoError(t, err)
	query := u.Query()
	query.Set("pool_max_conns", "3")
	for pair := range slices.Chunk(parameters, 2) {
		query.Set(pair[0], pair[1])
	}
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	pool, err := pgxpool.New(t.Context(), u.String())
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func exec(t *testing.T, db interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}, sql string, args ...any,
) {
	t.Helper()
	_, err := db.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

func column[T any](t *testing.T, db querier, sql string, args ...any) []T {
	t.Helper()
	rows, err := db.Query(t.Context(), sql, args...)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[T])
	require.NoError(t, err)
	return all
}

// begin opens a transaction that is rolled back, if it still runs, when the test ends.
func begin(t *testing.T, db *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := db.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	return tx
}

func insert(t *testing.T, db interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}, timestamp string,
) {
	t.Helper()
	exec(t, db, `INSERT INTO audit_log (timestamp, action, status) VALUES ($1, 'a', 'success')`, at(timestamp))
}

var nextSeven = []Step{
	step("audit_log_2026_12", "2026-12-01", "2027-01-01"),
	step("audit_log_2027_01", "2027-01-01", "2027-02-01"),
	step("audit_log_2027_02", "2027-02-01", "2027-03-01"),
	step("audit_log_2027_03", "2027-03-01", "2027-04-01"),
	step("audit_log_2027_04", "2027-04-01", "2027-05-01"),
	step("audit_log_2027_05", "2027-05-01", "2027-06-01"),
	step("audit_log_2027_06", "2027-06-01", "2027-07-01"),
}

func asBounds(steps []Step) []Bounds {
	all := make([]Bounds, len(steps))
	for i, s := range steps {
		all[i] = Bounds{Name: s.Name, From: s.From, To: s.To}
	}
	return all
}

// The outcome doesn't depend on what a session may have been set to.
func TestEnsure(t *testing.T) {
	for _, parameters := range [][]string{
		nil,
		{"timezone", "Pacific/Kiritimati", "datestyle", "SQL, DMY", "default_transaction_isolation", "serializable"},
		{"default_query_exec_mode", "exec", "timezone", "Asia/Kolkata"},
		{"default_query_exec_mode", "simple_protocol", "timezone", "Pacific/Pago_Pago"},
	} {
		t.Run(strings.Join(parameters, " "), func(t *testing.T) {
			versions(t, func(t *testing.T, db string) {
				pool := open(t, db, parameters...)
				created, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
				require.NoError(t, err)
				require.Equal(t, nextSeven, created)
				got, err := List(t.Context(), pool)
				require.NoError(t, err)
				require.Equal(t, asBounds(nextSeven), got)
				require.Equal(t, len(nextSeven), column[int](t, pool, `SELECT count(*) FROM audit_partition_event
					WHERE kind = 'create' AND state = 'done' AND detail->>'why' = 'ahead of time' AND upper_bound > lower_bound`)[0])

				created, err = Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
				require.NoError(t, err)
				require.Empty(t, created)
			})
		})
	}
}

// LIKE copies the indexes under names of their own. ATTACH must adopt exactly those.
func TestPartitionsAreLikeTheirParent(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		_, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
		require.NoError(t, err)
		parents := column[string](t, pool, `SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'audit_log'::regclass AND indisvalid ORDER BY 1`)
		require.Len(t, parents, 17)
		for _, s := range nextSeven {
			adopted := column[string](t, pool, `
				SELECT inhparent::regclass::text FROM pg_index LEFT JOIN pg_inherits ON inhrelid = indexrelid
				WHERE indrelid = $1::text::regclass AND indisvalid AND indisready ORDER BY 1`, s.Name)
			require.Equal(t, parents, adopted, s.Name)
		}
		require.Equal(t, []string{"{autovacuum_vacuum_insert_threshold=100000,autovacuum_vacuum_insert_scale_factor=0.1,autovacuum_analyze_scale_factor=0.05,autovacuum_freeze_min_age=0}"},
			column[string](t, pool, `SELECT DISTINCT reloptions::text FROM pg_class WHERE oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'audit_log'::regclass)`))

		// The parent's identity goes on counting across partitions, and ids can be given.
		insert(t, pool, "2026-12-31T23:59:59Z")
		insert(t, pool, "2027-01-01")
		exec(t, pool, `INSERT INTO audit_log (id, timestamp, action, status) VALUES (1000, '2027-01-02 00:00+00', 'a', 'failure')`)
		insert(t, pool, "2027-06-30T23:59:59Z")
		require.Equal(t, []string{"1 audit_log_2026_12", "2 audit_log_2027_01", "3 audit_log_2027_06", "1000 audit_log_2027_01"},
			column[string](t, pool, `SELECT id || ' ' || tableoid::regclass FROM audit_log ORDER BY id`))
		_, err = pool.CopyFrom(t.Context(), pgx.Identifier{"audit_log"}, []string{"timestamp", "action", "status"},
			pgx.CopyFromRows([][]any{{at("2027-03-01"), "a", "attempt"}}))
		require.NoError(t, err)
		require.Equal(t, []int64{4}, column[int64](t, pool, `SELECT id FROM audit_log WHERE status = 'attempt'`))

		var pg *pgconn.PgError
		_, err = pool.Exec(t.Context(), `INSERT INTO audit_log (timestamp, action, status) VALUES ('2027-07-01 00:00+00', 'a', 'success')`)
		require.ErrorAs(t, err, &pg)
		require.Equal(t, "23514", pg.Code)
		require.Empty(t, pg.ConstraintName, "this is how the sink knows that a partition is missing")
		_, err = pool.Exec(t.Context(), `INSERT INTO audit_log (timestamp, action, status) VALUES ('2027-06-01 00:00+00', 'a', 'maybe')`)
		require.ErrorAs(t, err, &pg)
		require.Equal(t, "audit_log_status_check", pg.ConstraintName)
	})
}

func TestTenEnsureAtOnce(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		var group errgroup.Group
		created := make([][]Step, 10)
		for i := range created {
			pool := open(t, db, "default_transaction_isolation", "repeatable read", "pool_max_conns", "1")
			group.Go(func() (err error) {
				created[i], err = Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
				return err
			})
		}
		require.NoError(t, group.Wait())
		require.ElementsMatch(t, nextSeven, slices.Concat(created...), "each is created by one of them")
		require.Len(t, column[string](t, open(t, db), `SELECT partition_name FROM audit_partition_event`), 7)
	})
}

func TestEnsureAndIngestDoNotWaitForEachOther(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "10", "lock_timeout", "5s")
		_, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 0})
		require.NoError(t, err)

		// Open transactions that have written and read.
		writer := begin(t, pool)
		insert(t, writer, "2026-12-24")
		reader := begin(t, pool)
		exec(t, reader, `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`)
		require.Empty(t, column[int](t, reader, `SELECT 1 FROM audit_log`))
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout/2)
		defer cancel()
		created, err := Ensure(ctx, pool, now, Schedule{Ahead: 6})
		require.NoError(t, err, "it must not wait for them")
		require.Equal(t, nextSeven[1:], created)
		insert(t, writer, "2026-12-25")
		require.NoError(t, writer.Commit(t.Context()))
		require.Empty(t, column[int](t, reader, `SELECT 1 FROM audit_log`))

		// A creator that has attached and not committed.
		creator := begin(t, pool)
		exec(t, creator, `SELECT create_audit_log_partition('audit_log_2027_07', '2027-07-01 00:00+00', '2027-08-01 00:00+00')`)
		insert(t, pool, "2026-12-26")
		require.Equal(t, 3, column[int](t, pool, `SELECT count(*) FROM audit_log`)[0])
	})
}

// waiting returns when the current transaction began of a session that waits for a lock in one of our statements; empty if none does.
const waiting = `SELECT coalesce(max(xact_start)::text, '') FROM pg_stat_activity
	WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'SELECT%create_audit_log_partition%'`

func TestEnsureTriesAgainWhileALockIsHeld(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "10")
		analyze := begin(t, pool)
		exec(t, analyze, `LOCK TABLE audit_log IN SHARE UPDATE EXCLUSIVE MODE`)

		var group errgroup.Group
		group.Go(func() error { _, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 6}); return err })
		first := ""
		require.Eventually(t, func() bool {
			first = column[string](t, pool, waiting)[0]
			return first != ""
		}, testTimeout, testTick)
		require.Eventually(t, func() bool {
			later := column[string](t, pool, waiting)[0]
			return later != "" && later != first
		}, testTimeout, testTick, "a second try never came")
		require.NoError(t, analyze.Commit(t.Context()))
		require.NoError(t, group.Wait())
		got, err := List(t.Context(), pool)
		require.NoError(t, err)
		require.Equal(t, asBounds(nextSeven), got)
	})
}

// Somebody who doesn't take our lock makes the month's partition between our look at the catalog and our CREATE, under the
// same name or another.
func TestEnsureTakesPartitionsOfOthers(t *testing.T) {
	for _, name := range []string{"audit_log_2026_12", "december"} {
		t.Run(name, func(t *testing.T) {
			versions(t, func(t *testing.T, db string) {
				pool := open(t, db, "pool_max_conns", "10")
				other := begin(t, pool)
				exec(t, other, `CREATE TABLE `+name+` PARTITION OF audit_log FOR VALUES FROM ('2026-12-01 00:00+00') TO ('2027-01-01 00:00+00')`)
				var group errgroup.Group
				var created []Step
				group.Go(func() (err error) {
					created, err = Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
					return err
				})
				require.Eventually(t, func() bool { return column[string](t, pool, waiting)[0] != "" }, testTimeout, testTick)
				require.NoError(t, other.Commit(t.Context()))
				require.NoError(t, group.Wait())
				require.Equal(t, nextSeven[1:], created)
			})
		})
	}
}

func TestEnsureCreatesTheOthersWhenANameIsTaken(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		exec(t, pool, `CREATE VIEW audit_log_2027_02 AS SELECT 1`)
		created, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
		var taken *NameTakenError
		require.ErrorAs(t, err, &taken)
		require.Equal(t, nextSeven[2], taken.Step)
		require.Equal(t, slices.Concat(nextSeven[:2], nextSeven[3:]), created)

		exec(t, pool, `DROP VIEW audit_log_2027_02`)
		created, err = Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
		require.NoError(t, err)
		require.Equal(t, nextSeven[2:3], created)
	})
}

func TestEnsureFor(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		horizon := 365 * 24 * time.Hour
		created, err := EnsureFor(t.Context(), pool, now, horizon, Schedule{}, []time.Time{at("2026-02-28T23:59:59Z"), at("2025-12-01"), at("2027-01-02T23:30:00Z")})
		require.NoError(t, err)
		want := []Step{
			step("audit_log_2025_12", "2025-12-01", "2026-01-01"), step("audit_log_2026_02", "2026-02-01", "2026-03-01"),
			nextSeven[0], nextSeven[1],
		}
		require.Equal(t, want, created)

		// What is refused is refused, and the rest done.
		created, err = EnsureFor(t.Context(), pool, now, horizon, Schedule{}, []time.Time{at("2025-11-30T23:59:59Z"), at("2026-03-01"), at("2027-01-02T23:30:01Z"), at("9999-01-01")})
		var refusal *RangeError
		require.ErrorAs(t, err, &refusal)
		require.Equal(t, []time.Time{at("2025-11-30T23:59:59Z"), at("2027-01-02T23:30:01Z"), at("9999-01-01")}, refusal.Refused)
		require.Equal(t, []Step{step("audit_log_2026_03", "2026-03-01", "2026-04-01")}, created)

		created, err = EnsureFor(t.Context(), pool, now, horizon, Schedule{}, []time.Time{at("1970-01-01")})
		require.ErrorAs(t, err, &refusal)
		require.Empty(t, created)
		require.Len(t, column[string](t, pool, `SELECT partition_name FROM audit_partition_event WHERE detail->>'why' = 'on demand'`), 5)
	})
}

func TestList(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "timezone", "Asia/Kolkata", "datestyle", "SQL, DMY", "pool_max_conns", "10")
		exec(t, pool, `
			CREATE TABLE rest PARTITION OF audit_log DEFAULT;
			CREATE TABLE audit_log_1999_01 PARTITION OF audit_log FOR VALUES FROM ('2026-12-01 00:00:00.000001+00') TO (MAXVALUE);
			CREATE TABLE b PARTITION OF audit_log FOR VALUES FROM ('2024-02-29 00:00+00') TO ('2024-03-01 00:00+14');
			CREATE TABLE a PARTITION OF audit_log FOR VALUES FROM (MINVALUE) TO ('2020-01-01 00:00+00')`)
		want := []Bounds{
			{Name: "a", To: at("2020-01-01")},
			{Name: "b", From: at("2024-02-29"), To: at("2024-02-29T10:00:00Z")},
			{Name: "audit_log_1999_01", From: at("2026-12-01").Add(time.Microsecond)},
			{Name: "rest", Default: true},
		}
		got, err := List(t.Context(), pool)
		require.NoError(t, err)
		require.Equal(t, want, got)

		var def *DefaultPartitionError
		_, err = Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
		require.ErrorAs(t, err, &def)
		require.Equal(t, "rest", def.Name)
		exec(t, pool, `DROP TABLE rest`)
		created, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
		require.NoError(t, err)
		require.Equal(t, []Step{{Name: "audit_log_2026_12", From: at("2026-12-01"), To: at("2026-12-01").Add(time.Microsecond)}}, created)
	})
}

// A DETACH CONCURRENTLY that was interrupted keeps the range until somebody finishes it.
func TestPendingDetach(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "10")
		_, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 0})
		require.NoError(t, err)
		reader := begin(t, pool)
		require.Empty(t, column[int](t, reader, `SELECT 1 FROM audit_log`))
		impatient := open(t, db, "lock_timeout", "100ms")
		_, err = impatient.Exec(t.Context(), `ALTER TABLE audit_log DETACH PARTITION audit_log_2026_12 CONCURRENTLY`)
		require.ErrorContains(t, err, "55P03")
		require.NoError(t, reader.Commit(t.Context()))

		got, err := List(t.Context(), pool)
		require.NoError(t, err)
		require.Equal(t, []Bounds{{Name: "audit_log_2026_12", From: at("2026-12-01"), To: at("2027-01-01"), Detaching: true}}, got)
		created, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 0})
		require.NoError(t, err)
		require.Empty(t, created)

		// Finished, it is a table with the name that the month's partition wants.
		exec(t, pool, `ALTER TABLE audit_log DETACH PARTITION audit_log_2026_12 FINALIZE`)
		_, err = Ensure(t.Context(), pool, now, Schedule{Ahead: 0})
		var taken *NameTakenError
		require.ErrorAs(t, err, &taken)
	})
}

func TestEnsureWithoutWriting(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		standby := open(t, db, "default_transaction_read_only", "on")
		_, err := Ensure(t.Context(), standby, now, Schedule{Ahead: 6})
		var pg *pgconn.PgError
		require.ErrorAs(t, err, &pg)
		require.Equal(t, "25006", pg.Code)

		_, err = Ensure(t.Context(), open(t, db), now, Schedule{Ahead: 6})
		require.NoError(t, err)
		created, err := Ensure(t.Context(), standby, now, Schedule{Ahead: 6})
		require.NoError(t, err, "nothing is missing, so nothing is written")
		require.Empty(t, created)
	})
}

// The DBA's function and ours take the same lock, and agree.
func TestEnsureAndTheSQLFunctionAgree(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "10")
		dba := begin(t, pool)
		require.Len(t, column[string](t, dba, `SELECT create_audit_log_partitions()`), 7)
		clock := column[time.Time](t, dba, `SELECT now()`)[0]

		var group errgroup.Group
		group.Go(func() error {
			created, err := Ensure(t.Context(), pool, clock, Schedule{Ahead: 6})
			if len(created) > 0 {
				return fmt.Errorf("created %v", created)
			}
			return err
		})
		require.Eventually(t, func() bool {
			return column[bool](t, pool, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)`)[0]
		}, testTimeout, testTick, "Ensure must wait for the function's lock")
		require.NoError(t, dba.Commit(t.Context()))
		require.NoError(t, group.Wait())
	})
}

func TestEnsureStopsWithItsContext(t *testing.T) {
	db := testkit.Postgres(t, 15)
	_, err := migrations.Apply(t.Context(), db)
	require.NoError(t, err)
	pool := open(t, db)
	holder := begin(t, pool)
	exec(t, holder, `SELECT pg_advisory_xact_lock($1)`, int64(lockID))
	ctx, cancel := context.WithCancel(t.Context())
	var group errgroup.Group
	group.Go(func() error { _, err := Ensure(ctx, pool, now, Schedule{Ahead: 6}); return err })
	require.Eventually(t, func() bool {
		return column[bool](t, pool, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)`)[0]
	}, testTimeout, testTick)
	cancel()
	require.ErrorIs(t, group.Wait(), context.Canceled)
}
