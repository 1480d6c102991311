package partitions

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/indexes"
	"auditsink/internal/testkit"
	"auditsink/metrics"
)

// deferIndexes makes the database build a profile's indexes later.
func deferIndexes(t *testing.T, db *pgxpool.Pool, profile indexes.Profile) indexes.Choice {
	t.Helper()
	choice := indexes.Choice{Profile: profile, Build: indexes.Deferred}
	require.NoError(t, pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error { return indexes.Choose(t.Context(), tx, choice) }))
	return choice
}

// built collects what a builder tells.
type built struct {
	mu   sync.Mutex // guards all
	all  []string
	errs []error
}

func (b *built) told(c Care, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.errs = append(b.errs, err)
		return
	}
	b.all = append(b.all, c.String())
}

func (b *built) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.all
	b.all = nil
	return taken
}

func builder(db *pgxpool.Pool, now string, grace time.Duration) (Builder, *built) {
	told := &built{}
	return Builder{DB: db, Grace: grace, Now: func() time.Time { return at(now) }, Every: 10 * time.Millisecond, Told: told.told}, told
}

// history makes partitions whose creation is past for every grace.
func history(t *testing.T, db *pgxpool.Pool, interval Interval, times ...string) {
	t.Helper()
	for _, text := range times {
		from := interval.start(at(text))
		name := from.Format("audit_log_2006_01")
		if interval == Day {
			name = from.Format("audit_log_2006_01_02")
		}
		exec(t, db, `SELECT create_audit_log_partition($1, $2, $3)`, name, from, interval.add(from, 1))
	}
	exec(t, db, `UPDATE audit_partition_event SET recorded_at = recorded_at - interval '10 years' WHERE kind = 'create'`)
}

// indexesOf lists a partition's valid indexes but the primary key.
func indexesOf(t *testing.T, db querier, partition string) []string {
	t.Helper()
	return column[string](t, db, `SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = $1::text::regclass AND indisvalid AND NOT indisprimary ORDER BY 1`, partition)
}

const invalid = `SELECT count(*) FROM pg_index x JOIN audit_log_partition_bounds() b ON b.relid = x.indrelid WHERE NOT x.indisvalid`

// TestBuild: after the grace and not before, that which has waited longest first, of days and of months, each with its begin and end on record; once is enough, and what a DBA made stays.
func TestBuild(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		choice := deferIndexes(t, pool, indexes.Lean)
		history(t, pool, Month, "2026-09-01")
		history(t, pool, Day, "2026-10-01", "2026-10-02")
		for _, day := range []string{"2026-09-05", "2026-10-01", "2026-10-02"} {
			fill(t, pool, day, 50)
		}
		exec(t, pool, `CREATE INDEX mine ON audit_log_2026_10_01 (lane_id); CREATE INDEX also_mine ON audit_log_2026_10_01 (retention_policy)`)
		term := takeTerm(t, pool, "me")

		b, told := builder(pool, "2026-10-02T00:59:59Z", time.Hour)
		require.NoError(t, b.Build(t.Context(), term))
		require.Len(t, told.take(), len(choice.Later()), "September")
		require.Equal(t, []string{"also_mine", "audit_log_2026_10_01_timestamp_brin_idx", "mine"}, indexesOf(t, pool, "audit_log_2026_10_01"))

		b, told = builder(pool, "2026-10-02T01:00:00Z", time.Hour)
		require.NoError(t, b.Build(t.Context(), term))
		var want []string
		for _, i := range choice.Later() {
			if i.X != "retention_policy" {
				want = append(want, "build "+i.Name("audit_log_2026_10_01")+" on audit_log_2026_10_01")
			}
		}
		require.Equal(t, want, told.take())
		require.Subset(t, indexesOf(t, pool, "audit_log_2026_10_01"), []string{"also_mine", "mine", "audit_log_2026_10_01_bloom_idx"})
		require.Equal(t, []string{"audit_log_2026_10_02_timestamp_brin_idx"}, indexesOf(t, pool, "audit_log_2026_10_02"))
		require.NoError(t, b.Build(t.Context(), term))
		require.Empty(t, told.take(), "once is enough")
		require.Equal(t, []string{fmt.Sprintf("done %d t t 2026-10-01 2026-10-02", term.Number)}, column[string](t, pool, `
			SELECT DISTINCT concat_ws(' ', state, term, (detail->'seconds')::float8 > 0, (detail->'bytes')::bigint > 0, (lower_bound AT TIME ZONE 'UTC')::date, (upper_bound AT TIME ZONE 'UTC')::date)
			FROM audit_partition_event WHERE kind = 'index' AND partition_name = 'audit_log_2026_10_01'`))

		// The database's clock counts too, and so does the creation of what is created for late events.
		exec(t, pool, `UPDATE audit_partition_event SET recorded_at = clock_timestamp() - interval '59 minutes' WHERE kind = 'create'`)
		b, told = builder(pool, "2999-01-01", time.Hour)
		require.NoError(t, b.Build(t.Context(), term))
		require.Empty(t, told.take())
		exec(t, pool, `UPDATE audit_partition_event SET recorded_at = clock_timestamp() - interval '60 minutes' WHERE kind = 'create'`)
		require.NoError(t, b.Build(t.Context(), term))
		require.Len(t, told.take(), len(choice.Later()), "the 2nd of October")
		require.Empty(t, told.errs)
	})
}

// TestBuildImmediate: nothing is built later where all is built at once.
func TestBuildImmediate(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		history(t, pool, Day, "2026-10-01")
		b, told := builder(pool, "2026-11-01", 0)
		require.NoError(t, b.Build(t.Context(), takeTerm(t, pool, "me")))
		require.Empty(t, told.take())
	})
}

// slowly makes the next builds of the partition wait for an open writer until it is released.
func slowly(t *testing.T, db, timestamp string) (release func()) {
	t.Helper()
	conn := dial(t, db)
	exec(t, conn, `BEGIN`)
	exec(t, conn, `INSERT INTO audit_log (timestamp, action, status) VALUES ($1, 'held', 'success')`, at(timestamp))
	return func() { exec(t, conn, `COMMIT`) }
}

// awaitBuild waits until the server has made an index and waits for a writer before it builds it, and returns its process.
func awaitBuild(t *testing.T, db querier) int32 {
	t.Helper()
	var pids []int32
	require.Eventually(t, func() bool {
		pids = column[int32](t, db, `SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database() AND phase LIKE 'waiting for writers%'`)
		return len(pids) == 1
	}, time.Minute, 5*time.Millisecond)
	return pids[0]
}

// TestBuildInterrupted: whatever ends a build in its midst leaves an invalid index at most, and the next leader builds all that is missing.
func TestBuildInterrupted(t *testing.T) {
	for name, interrupt := range map[string]func(t *testing.T, pool *pgxpool.Pool, pid int32, cancel func()){
		"backend killed": func(t *testing.T, pool *pgxpool.Pool, pid int32, _ func()) {
			exec(t, pool, `SELECT pg_terminate_backend($1)`, pid)
		},
		"term over": func(_ *testing.T, _ *pgxpool.Pool, _ int32, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			versions(t, func(t *testing.T, db string) {
				pool := open(t, db, "pool_max_conns", "10")
				choice := deferIndexes(t, pool, indexes.Full)
				history(t, pool, Day, "2026-10-01")
				fill(t, pool, "2026-10-01", 500)
				release := slowly(t, db, "2026-10-01")
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				b, _ := builder(pool, "2026-11-01", time.Hour)
				term := takeTerm(t, pool, "me")
				var group errgroup.Group
				group.Go(func() error { return b.Build(ctx, term) })
				interrupt(t, pool, awaitBuild(t, pool), func() { cancel(ErrDeposed) })
				err := group.Wait()
				require.Error(t, err)
				require.Equal(t, ctx.Err() != nil, errors.Is(err, ErrDeposed))
				require.Eventually(t, func() bool { // nobody goes on with it
					return column[int64](t, pool, `SELECT count(*) FROM pg_stat_progress_create_index`)[0] == 0
				}, time.Minute, 5*time.Millisecond)
				require.Equal(t, []int64{1}, column[int64](t, pool, invalid))
				require.Equal(t, []string{"verified"}, column[string](t, pool, `SELECT state FROM audit_partition_event WHERE partition_name <> 'audit_log' AND kind = 'index'`))
				release()

				var told *built
				b, told = builder(pool, "2026-11-01", time.Hour)
				require.NoError(t, b.Build(t.Context(), takeTerm(t, pool, "you")))
				require.Len(t, told.take(), len(choice.Later()))
				require.Equal(t, []int64{0}, column[int64](t, pool, invalid))
				require.Len(t, indexesOf(t, pool, "audit_log_2026_10_01"), len(choice.Later())+1)
				require.Equal(t, []int64{int64(len(choice.Later()))}, column[int64](t, pool, `SELECT count(*) FROM audit_partition_event WHERE partition_name <> 'audit_log' AND kind = 'index' AND state = 'done'`), "one record each")
				require.Equal(t, []int64{int64(len(choice.Later()))}, column[int64](t, pool, `SELECT count(*) FROM audit_partition_event WHERE partition_name <> 'audit_log' AND kind = 'index'`))
			})
		})
	}
}

// TestBuildOfTheDeposed: a leader that was deposed begins no build, and says of none that it is done.
func TestBuildOfTheDeposed(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "10")
		choice := deferIndexes(t, pool, indexes.Lean)
		history(t, pool, Day, "2026-10-01")
		old, term := takeTerm(t, pool, "me"), takeTerm(t, pool, "you")
		b, told := builder(pool, "2026-11-01", time.Hour)
		require.ErrorIs(t, b.Run(t.Context(), old), ErrDeposed)
		require.Len(t, indexesOf(t, pool, "audit_log_2026_10_01"), 1)
		require.Empty(t, column[string](t, pool, `SELECT kind FROM audit_partition_event WHERE partition_name <> 'audit_log' AND kind = 'index'`))

		release := slowly(t, db, "2026-10-01")
		var group errgroup.Group
		group.Go(func() error { return b.Run(t.Context(), term) })
		awaitBuild(t, pool)
		third := takeTerm(t, pool, "she")
		release()
		require.ErrorIs(t, group.Wait(), ErrDeposed)
		require.Empty(t, told.take())
		require.Equal(t, []string{"verified"}, column[string](t, pool, `SELECT state FROM audit_partition_event WHERE partition_name <> 'audit_log' AND kind = 'index'`))
		require.NoError(t, b.Build(t.Context(), third))
		require.Len(t, indexesOf(t, pool, "audit_log_2026_10_01"), len(choice.Later())+1)
		require.Equal(t, []string{"done"}, column[string](t, pool, `SELECT DISTINCT state FROM audit_partition_event WHERE partition_name <> 'audit_log' AND kind = 'index'`))
		require.Equal(t, []int64{int64(len(choice.Later()))}, column[int64](t, pool, `SELECT count(*) FROM audit_partition_event WHERE partition_name <> 'audit_log' AND kind = 'index'`), "one record each")
	})
}

// TestBuildAmongWriters: events come in while indexes are built, none fails, and all are in the indexes.
func TestBuildAmongWriters(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "10")
		deferIndexes(t, pool, indexes.Full)
		history(t, pool, Day, "2026-10-01")
		fill(t, pool, "2026-10-01", 3000)
		b, _ := builder(pool, "2026-11-01", time.Hour)
		term := takeTerm(t, pool, "me")
		stop := make(chan struct{})
		var group errgroup.Group
		for n := range 2 {
			writer := dial(t, db)
			group.Go(func() error {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return nil
					default:
					}
					_, err := writer.Exec(t.Context(), `INSERT INTO audit_log (timestamp, action, status, correlation_id) VALUES ('2026-10-01 12:00+00', 'late', 'success', $1)`, fmt.Sprint(n, "-", i))
					if err != nil {
						return err
					}
				}
			})
		}
		err := b.Build(t.Context(), term)
		close(stop)
		require.NoError(t, group.Wait(), "a writer failed")
		require.NoError(t, err)
		reader := dial(t, db)
		count := func(off string) []int64 {
			exec(t, reader, `SET enable_seqscan = on; SET enable_indexscan = on; SET enable_indexonlyscan = on; SET enable_bitmapscan = on`)
			for name := range strings.FieldsSeq(off) {
				exec(t, reader, `SET `+name+` = off`)
			}
			return column[int64](t, reader, `SELECT count(*) FROM audit_log_2026_10_01 WHERE action = 'late' AND correlation_id > ''`)
		}
		want := count("enable_indexscan enable_indexonlyscan enable_bitmapscan")
		require.Positive(t, want[0])
		require.Equal(t, want, count("enable_seqscan"))
	})
}

// TestBuildLeaves: nothing is begun beside an old transaction, nor where somebody else has the partition locked; that keeps others from nothing, and is done later.
func TestBuildLeaves(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "10")
		choice := deferIndexes(t, pool, indexes.Lean)
		history(t, pool, Day, "2026-10-01", "2026-10-02")
		b, told := builder(pool, "2026-11-01", time.Hour)
		term := takeTerm(t, pool, "me")
		other := begin(t, pool)
		exec(t, other, `LOCK TABLE audit_log_2026_10_01 IN SHARE UPDATE EXCLUSIVE MODE`)
		require.NoError(t, b.Build(t.Context(), term))
		left := told.take()
		require.Len(t, left, 2*len(choice.Later()))
		for n, one := range left {
			require.Equal(t, n < len(choice.Later()), strings.HasPrefix(one, "left for later: build audit_log_2026_10_01_") && strings.HasSuffix(one, "somebody else has it locked"), one)
		}
		require.Len(t, indexesOf(t, pool, "audit_log_2026_10_01"), 1)
		require.NoError(t, other.Rollback(t.Context()))
		require.NoError(t, b.Build(t.Context(), term))
		require.Len(t, told.take(), len(choice.Later()))

		// A name that is taken is told, and keeps the others from nothing.
		history(t, pool, Day, "2026-10-03")
		exec(t, pool, `CREATE INDEX audit_log_2026_10_03_timestamp_idx ON audit_log_2026_10_03 (recorded_at)`)
		err := b.Build(t.Context(), term)
		var taken *indexes.NameTakenError
		require.ErrorAs(t, err, &taken)
		require.Len(t, told.take(), len(choice.Later())-1)
	})
}

// TestBuildBesideOld: an old snapshot keeps all from their indexes, and an old lock on a partition that alone.
func TestBuildBesideOld(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		deferIndexes(t, pool, indexes.Lean)
		history(t, pool, Day, "2026-10-01", "2026-10-02")
		b, _ := builder(pool, "2026-11-01", time.Hour)
		s, err := b.begin(t.Context(), takeTerm(t, pool, "me"))
		require.NoError(t, err)
		defer s.end(t.Context())
		s.old = time.Nanosecond
		left := func(partition string) string {
			d := &dueIndex{due: due{Care: Care{Partition: partition}}}
			_, err := s.besideOld(t.Context(), d)
			require.NoError(t, err)
			return d.Left
		}
		other := dial(t, db)
		exec(t, other, `BEGIN; LOCK TABLE audit_log_2026_10_01 IN SHARE UPDATE EXCLUSIVE MODE`)
		require.Equal(t, lockedByOther, left("audit_log_2026_10_01"))
		require.Empty(t, left("audit_log_2026_10_02"))
		exec(t, other, `COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM audit_lane`)
		require.Equal(t, besideOld, left("audit_log_2026_10_02"))
		exec(t, other, `COMMIT`)
	})
}

// TestBuildOnTheWayBack: what was detached with its builds half done is finished after it was attached again.
func TestBuildOnTheWayBack(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "10")
		choice := deferIndexes(t, pool, indexes.Full)
		history(t, pool, Day, "2026-10-01")
		fill(t, pool, "2026-10-01", 100)
		term := takeTerm(t, pool, "me")
		_, err := indexes.Create(t.Context(), dial(t, db), "audit_log_2026_10_01", choice.Later()[0])
		require.NoError(t, err)
		exec(t, pool, `ALTER TABLE audit_log DETACH PARTITION audit_log_2026_10_01`)
		b, told := builder(pool, "2026-11-01", time.Hour)
		require.NoError(t, b.Build(t.Context(), term))
		require.Empty(t, told.take())
		exec(t, pool, `ALTER TABLE audit_log ATTACH PARTITION audit_log_2026_10_01 FOR VALUES FROM ('2026-10-01 00:00+00') TO ('2026-10-02 00:00+00')`)
		require.NoError(t, b.Build(t.Context(), term))
		require.Len(t, told.take(), len(choice.Later())-1)
	})
}

// TestUnbuiltIsNotRead: whoever asks every few minutes what is to become of the partitions reads none whole that lacks its indexes, and nothing goes before it has them.
func TestUnbuiltIsNotRead(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "1") // so that what it has read is seen
		deferIndexes(t, pool, indexes.Full)
		history(t, pool, Day, "2024-10-01", "2024-10-02")
		fill(t, pool, "2024-10-01", 20_000)
		exec(t, pool, `UPDATE audit_log SET retention_policy = 'minimal'`)
		exec(t, pool, `INSERT INTO audit_legal_hold (organization_id, reason, placed_by) VALUES ('nobody', 'r', 'me')`)
		term := takeTerm(t, pool, "me")
		retention := Retention{Enforce: true, MinDays: 1}
		read := func() int64 {
			exec(t, pool, `SELECT pg_stat_force_next_flush()`)
			return column[int64](t, pool, `SELECT pg_stat_get_tuples_returned('audit_log_2024_10_01'::regclass)`)[0]
		}
		before := read()
		s, err := Inspect(t.Context(), pool, now, retention)
		require.NoError(t, err)
		require.Equal(t, notTold, s.Stats[0].Fate.Why)
		require.True(t, s.Stats[0].Fate.Due.IsZero())
		require.Contains(t, s.Stats[1].Fate.Why, "it is empty")
		done, err := Retire(t.Context(), pool, term, now, retention)
		require.NoError(t, err)
		require.Contains(t, done, Action{Name: "audit_log_2024_10_01", What: "waits", Why: errUnbuilt.Error()})
		_, err = Expire(t.Context(), pool, term, now, retention)
		require.NoError(t, err)
		require.Less(t, read()-before, int64(100), "of 20,000 rows")

		b, _ := builder(pool, "2026-11-01", time.Hour)
		require.NoError(t, b.Build(t.Context(), term))
		fates, err := Outlook(t.Context(), pool, now, retention)
		require.NoError(t, err)
		require.Contains(t, fates[0].Why, "policy minimal")
		require.False(t, fates[0].Due.IsZero())
	})
}

// TestBuildOutlastsTheRole: what the database says of how long a statement may last isn't for builds; one that is canceled all the same is an error, and no quiet loop.
func TestBuildOutlastsTheRole(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "10")
		deferIndexes(t, pool, indexes.Lean)
		history(t, pool, Day, "2026-10-01")
		b, told := builder(pool, "2026-11-01", time.Hour)
		term := takeTerm(t, pool, "me")
		release := slowly(t, db, "2026-10-01")
		exec(t, pool, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET statement_timeout = %L', current_database(), '1s'); END $$`)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var group errgroup.Group
		group.Go(func() error { return b.Run(ctx, term) })
		pid := awaitBuild(t, pool)
		require.Eventually(t, func() bool {
			return column[bool](t, pool, `SELECT clock_timestamp() - query_start > interval '1.5 seconds' AND state = 'active' AND query LIKE 'CREATE INDEX CONCURRENTLY%' FROM pg_stat_activity WHERE pid = $1`, pid)[0]
		}, 20*time.Second, 20*time.Millisecond, "it goes on for longer than a statement of the role may")
		exec(t, pool, `SELECT pg_cancel_backend($1)`, pid)
		release()
		require.Eventually(t, func() bool {
			told.mu.Lock()
			defer told.mu.Unlock()
			return len(told.errs) > 0
		}, time.Minute, 5*time.Millisecond)
		cancel()
		require.ErrorIs(t, group.Wait(), context.Canceled)
		require.ErrorContains(t, told.errs[0], "57014")
	})
}

// TestBuildThroughAPooler: behind a pooler in transaction mode all is built, and others' sessions stay as they were.
func TestBuildThroughAPooler(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			db := testkit.Postgres(t, version)
			pool := openMigrated(t, db)
			choice := deferIndexes(t, pool, indexes.Lean)
			history(t, pool, Day, "2026-10-01")
			pooled := open(t, testkit.OwnPgBouncer(t, db), "default_query_exec_mode", "exec")
			b, told := builder(pooled, "2026-11-01", time.Hour)
			require.NoError(t, b.Build(t.Context(), takeTerm(t, pool, "me")))
			require.Len(t, told.take(), len(choice.Later()))
			require.Equal(t, []string{"0"}, column[string](t, pooled, `SELECT setting FROM pg_settings WHERE name = 'lock_timeout'`))
		})
	}
}

// TestToBuildIsTold: metrics and health tell what is due and since when, and advise where it waits for more than a day; a partition that hasn't ended, or whose grace lasts, isn't waited for.
func TestToBuildIsTold(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		choice := deferIndexes(t, pool, indexes.Lean)
		history(t, pool, Day, "2026-10-01", "2026-10-02", "2026-10-03")
		schedule := Schedule{Interval: Day, IndexGrace: 2 * time.Hour}
		for now, want := range map[string]struct {
			n       int
			since   string
			advised bool
		}{
			"2026-10-02T01:59:59Z": {0, "", false},
			"2026-10-02T02:00:00Z": {len(choice.Later()), "2026-10-02T02:00:00Z", false},
			"2026-10-03T01:59:59Z": {len(choice.Later()), "2026-10-02T02:00:00Z", false},
			"2026-10-03T02:00:00Z": {2 * len(choice.Later()), "2026-10-02T02:00:00Z", true},
		} {
			s, err := Inspect(t.Context(), pool, at(now), Retention{})
			require.NoError(t, err)
			n, since := s.ToBuild(schedule.IndexGrace)
			require.Equal(t, want.n, n, now)
			require.Equal(t, at(want.since), since, now)
			advice := adviseIndexes(s, schedule, true)
			require.Equal(t, want.advised, len(advice) == 1, now)
			if want.advised {
				require.Equal(t, []string{"audit_log_2026_10_01", "audit_log_2026_10_02"}, advice[0].Partitions)
			}
			m := metrics.New("v1", []time.Duration{})
			w := NewWatch(pool, m, schedule, Retention{})
			require.NoError(t, w.PublishStatistics(t.Context(), at(now)))
			c := health(w.latest, schedule, true)
			require.Equal(t, want.n > 0, c.Details["indexes_to_build"] == want.n, now)
			require.InDelta(t, want.n, gauge(t, m, "indexes_to_build"), 0)
			if want.n > 0 {
				require.InDelta(t, at(want.since).Unix(), gauge(t, m, "indexes_to_build_since_timestamp_seconds"), 0)
			}
		}
	})
}
