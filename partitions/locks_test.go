package partitions

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// writing stores batches until the test ends. A batch that fails, or waits two seconds for a lock, fails the test.
type writing struct{ committed atomic.Int64 }

func write(t *testing.T, db string) *writing {
	t.Helper()
	pool := open(t, db, "lock_timeout", "2s", "pool_max_conns", "1")
	ctx, stop := context.WithCancel(t.Context())
	w := &writing{}
	var group errgroup.Group
	group.Go(func() error {
		for ctx.Err() == nil {
			err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				_, err := tx.CopyFrom(ctx, pgx.Identifier{"audit_log"}, []string{"timestamp", "action", "status"},
					pgx.CopyFromRows([][]any{{at("2026-12-24"), "a", "attempt"}, {at("2026-12-31T23:59:59Z"), "a", "success"}}))
				return err
			})
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("after %d batches: %w", w.committed.Load(), err)
			}
			w.committed.Add(1)
		}
		return nil
	})
	t.Cleanup(func() {
		stop()
		require.NoError(t, group.Wait())
	})
	return w
}

// goesOn requires that so many batches are stored from now on.
func (w *writing) goesOn(t *testing.T, batches int64) {
	t.Helper()
	from := w.committed.Load()
	require.Eventually(t, func() bool { return w.committed.Load() >= from+batches }, testTimeout, testTick, "the writer stands still")
}

// Whoever reads audit_log, however long, and whoever looks after a partition of it, neither keeps partitions from being created nor comes to wait for it, and ingest
// goes on.
func TestCreationBesideReaders(t *testing.T) {
	for name, occupy := range map[string]func(t *testing.T, db string, pool *pgxpool.Pool) (still func()){
		"a transaction that has read": func(t *testing.T, _ string, pool *pgxpool.Pool) func() {
			tx := begin(t, pool)
			count := func() { require.NotEmpty(t, column[int](t, tx, `SELECT count(*) FROM audit_log`)) }
			count()
			return count
		},
		"an open cursor": func(t *testing.T, _ string, pool *pgxpool.Pool) func() {
			tx := begin(t, pool)
			insert(t, tx, "2026-12-01")
			exec(t, tx, `DECLARE c CURSOR FOR SELECT id FROM audit_log`)
			fetch := func() { require.Len(t, column[int64](t, tx, `FETCH 1 FROM c`), 1) }
			fetch()
			insert(t, tx, "2026-12-02")
			return func() { exec(t, tx, `CLOSE c`) }
		},
		"a dump": func(t *testing.T, _ string, pool *pgxpool.Pool) func() {
			tx := begin(t, pool)
			exec(t, tx, `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY`)
			exec(t, tx, `LOCK TABLE audit_log, audit_log_2026_12 IN ACCESS SHARE MODE`)
			before := column[int64](t, tx, `SELECT count(*) FROM audit_log_2026_12`)
			return func() { require.Equal(t, before, column[int64](t, tx, `SELECT count(*) FROM audit_log`)) }
		},
		"a vacuum under way": func(t *testing.T, db string, pool *pgxpool.Pool) func() {
			tx := begin(t, pool)
			exec(t, tx, `LOCK TABLE audit_log_2026_12 IN SHARE UPDATE EXCLUSIVE MODE`) // it waits for this, which writers don't
			return under(t, db, pool, `VACUUM (ANALYZE) audit_log`, func() { require.NoError(t, tx.Rollback(t.Context())) })
		},
		"an index being built": func(t *testing.T, db string, pool *pgxpool.Pool) func() {
			tx := begin(t, pool)
			insert(t, tx, "2026-12-01") // it waits for transactions that write
			return under(t, db, pool, `CREATE INDEX CONCURRENTLY ON audit_log_2026_12 (action, status)`, func() { require.NoError(t, tx.Rollback(t.Context())) })
		},
		"a detach that waits": func(t *testing.T, db string, pool *pgxpool.Pool) func() {
			_, err := EnsureFor(t.Context(), pool, now, now.Sub(at("2025-01-01")), Schedule{}, days("2026-01-01"))
			require.NoError(t, err)
			tx := begin(t, pool)
			require.NotEmpty(t, column[int](t, tx, `SELECT count(*) FROM audit_log`)) // it waits for transactions that read
			return under(t, db, pool, `ALTER TABLE audit_log DETACH PARTITION audit_log_2026_01 CONCURRENTLY`, func() {
				require.Equal(t, []bool{true}, column[bool](t, pool, `SELECT is_detaching FROM audit_log_partition_bounds() WHERE partition_name = 'audit_log_2026_01'`))
				require.NoError(t, tx.Rollback(t.Context()))
			})
		},
		"a detach that was interrupted": func(t *testing.T, db string, pool *pgxpool.Pool) func() {
			_, err := EnsureFor(t.Context(), pool, now, now.Sub(at("2025-01-01")), Schedule{}, days("2026-01-01"))
			require.NoError(t, err)
			tx := begin(t, pool)
			require.NotEmpty(t, column[int](t, tx, `SELECT count(*) FROM audit_log`))
			_, err = open(t, db, "lock_timeout", "100ms").Exec(t.Context(), `ALTER TABLE audit_log DETACH PARTITION audit_log_2026_01 CONCURRENTLY`)
			require.ErrorContains(t, err, "55P03")
			return func() {
				require.Equal(t, []bool{true}, column[bool](t, pool, `SELECT is_detaching FROM audit_log_partition_bounds() WHERE partition_name = 'audit_log_2026_01'`))
				require.NoError(t, tx.Rollback(t.Context()))
				exec(t, pool, `ALTER TABLE audit_log DETACH PARTITION audit_log_2026_01 FINALIZE`)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			versions(t, func(t *testing.T, db string) {
				pool := open(t, db, "pool_max_conns", "10")
				_, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 0})
				require.NoError(t, err)
				w := write(t, db)
				w.goesOn(t, 10)
				still := occupy(t, db, pool)
				ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
				defer cancel()
				created, err := Ensure(ctx, pool, now, Schedule{Ahead: 6})
				require.NoError(t, err, "it must not wait for them")
				require.Equal(t, nextSeven[1:], created)
				created, err = EnsureFor(ctx, pool, now, now.Sub(at("2025-01-01")), Schedule{Interval: Day}, days("2025-03-04"))
				require.NoError(t, err)
				require.Equal(t, []Step{step("audit_log_2025_03", "2025-03-01", "2025-04-01")}, created)
				w.goesOn(t, 10)
				still()
			})
		})
	}
}

func days(texts ...string) (all []time.Time) {
	for _, text := range texts {
		all = append(all, at(text))
	}
	return all
}

// under begins a statement in a session of its own, and returns when it waits for a lock. What is returned lets it go on, and requires that it then succeeds.
func under(t *testing.T, db string, pool *pgxpool.Pool, sql string, release func()) func() {
	t.Helper()
	own := open(t, db, "pool_max_conns", "1", "application_name", "under way")
	var group errgroup.Group
	group.Go(func() error { _, err := own.Exec(t.Context(), sql); return err })
	require.Eventually(t, func() bool {
		return column[bool](t, pool, `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'under way' AND wait_event_type = 'Lock')`)[0]
	}, testTimeout, testTick)
	return func() {
		require.True(t, column[bool](t, pool, `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'under way' AND wait_event_type = 'Lock')`)[0], "it waited all the while")
		release()
		require.NoError(t, group.Wait())
	}
}

// While something has a lock on audit_log that creation needs, creation waits and tries again, ingest goes on beside it, and it succeeds in the end.
func TestIngestGoesOnWhileCreationWaits(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"ANALYZE of the parent":   `ANALYZE audit_log`,
		"another's partition":     `CREATE TABLE other (LIKE audit_log INCLUDING ALL EXCLUDING IDENTITY); ALTER TABLE audit_log ATTACH PARTITION other FOR VALUES FROM ('2031-01-01 00:00+00') TO ('2031-01-02 00:00+00')`,
		"a lock of the same mode": `LOCK TABLE audit_log IN SHARE UPDATE EXCLUSIVE MODE`,
	} {
		t.Run(name, func(t *testing.T) {
			versions(t, func(t *testing.T, db string) {
				pool := open(t, db, "pool_max_conns", "10")
				_, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 0})
				require.NoError(t, err)
				w := write(t, db)
				reader := begin(t, pool)
				require.NotEmpty(t, column[int](t, reader, `SELECT count(*) FROM audit_log`))
				holder := begin(t, pool)
				exec(t, holder, sql)

				var group errgroup.Group
				var created []Step
				group.Go(func() (err error) {
					created, err = Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
					return err
				})
				tries := map[string]bool{}
				require.Eventually(t, func() bool {
					began := column[string](t, pool, waiting)[0]
					if began != "" {
						tries[began] = true
						w.goesOn(t, 5)
						// New readers don't queue behind it either.
						require.NotEmpty(t, column[int](t, pool, `SELECT count(*) FROM audit_log`))
					}
					return len(tries) >= 2
				}, testTimeout, testTick, "it must try again")
				require.NoError(t, holder.Commit(t.Context()))
				require.NoError(t, group.Wait())
				require.Equal(t, nextSeven[1:], created)
				require.NotEmpty(t, column[int](t, reader, `SELECT count(*) FROM audit_log`))
			})
		})
	}
}

// A pending detach of what is wanted itself: its range isn't free, and the rest is created.
func TestEnsureForBesideWhatDetaches(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "10")
		horizon := now.Sub(at("2025-01-01"))
		_, err := EnsureFor(t.Context(), pool, now, horizon, Schedule{}, days("2026-01-01"))
		require.NoError(t, err)
		reader := begin(t, pool)
		require.NotEmpty(t, column[int](t, reader, `SELECT count(*) FROM audit_log`))
		_, err = open(t, db, "lock_timeout", "100ms").Exec(t.Context(), `ALTER TABLE audit_log DETACH PARTITION audit_log_2026_01 CONCURRENTLY`)
		require.ErrorContains(t, err, "55P03")
		require.NoError(t, reader.Rollback(t.Context()))
		created, err := EnsureFor(t.Context(), pool, now, horizon, Schedule{}, days("2026-01-05", "2026-02-01"))
		require.NoError(t, err)
		require.Equal(t, []Step{step("audit_log_2026_02", "2026-02-01", "2026-03-01")}, created)
	})
}
