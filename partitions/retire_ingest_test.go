package partitions

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// TestRetireBesideIngest: late events come for a month that is retired at the same time, over and over, each round to the end. Each row is there, or on record as
// gone.
func TestRetireBesideIngest(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url, "pool_max_conns", "10")
		january := month(t, db, "2015-01-01")
		now, hasty := at("2015-09-01"), Retention{Enforce: true, MinDays: 30}
		const writers, each = 3, 150
		var left atomic.Int32
		left.Store(writers)
		var group errgroup.Group
		for n := range writers {
			group.Go(func() error {
				defer left.Add(-1)
				for i := range each {
					stamp := january.From.Add(time.Duration(i*writers+n) * time.Minute)
					for {
						_, err := db.Exec(t.Context(), `INSERT INTO audit_log (timestamp, action, status, retention_policy) VALUES ($1, 'a', 'success', '90')`, stamp)
						pg, refused := errors.AsType[*pgconn.PgError](err)
						if !refused && err != nil || refused && pg.Code != "23514" {
							return err
						}
						if !refused {
							break
						}
						if _, err := EnsureFor(t.Context(), db, now, 365*24*time.Hour, Schedule{}, []time.Time{stamp}); err != nil {
							return fmt.Errorf("ensure: %w", err)
						}
					}
				}
				return nil
			})
		}
		term := lead(t, db, "me")
		dropped := 0
		group.Go(func() error {
			for {
				last := left.Load() == 0
				done, err := Retire(t.Context(), db, term, now, hasty)
				if err != nil {
					return err
				}
				for _, a := range done {
					if a.What == "dropped" {
						dropped++
					}
				}
				if last {
					return nil
				}
			}
		})
		require.NoError(t, group.Wait())
		for column[int](t, db, `SELECT count(*) FROM pg_class WHERE relname = 'audit_log_2015_01'`)[0] > 0 { // the last round may have found it on its way back
			_, err := Retire(t.Context(), db, term, now, hasty)
			require.NoError(t, err)
		}
		require.Equal(t, []int64{0}, column[int64](t, db, `SELECT count(*) FROM audit_log`))
		require.Equal(t, []int64{writers * each}, column[int64](t, db, `SELECT sum(row_count)::bigint FROM audit_partition_event WHERE kind = 'drop' AND state = 'done'`))
		require.Positive(t, dropped)
		t.Logf("dropped %d times", dropped)
	})
}

// What was attached again meanwhile isn't locked for a count, let alone dropped.
func TestADropThatComesLate(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url, "pool_max_conns", "10")
		month(t, db, "2015-01-01")
		row(t, db, "2015-01-10", "minimal")
		term, now := lead(t, db, "me"), at("2015-06-01")
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached"}, retire(t, db, term, now))
		r := &round{db: db, term: term, now: now.Add(enforced.Grace), retention: enforced}
		stale := mustLook(t, db, "audit_log_2015_01")
		_, err := Restore(t.Context(), db, stale.Name, "a case", "anna")
		require.NoError(t, err)
		require.NoError(t, r.take(t.Context(), stale, drop))
		require.NoError(t, r.take(t.Context(), stale, settle))
		require.Empty(t, r.done)
		require.Equal(t, []int64{1}, column[int64](t, db, `SELECT count(*) FROM audit_log`))
	})
}
