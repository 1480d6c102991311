package performance

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
	"auditsink/metrics"
	"auditsink/partitions"
)

func (b *bed) optimizer(on Switches) *Optimizer {
	b.Helper()
	return &Optimizer{DB: b.pool, On: on, By: "me", Metrics: b.metrics, Log: b.logger(), Now: b.clock}
}

// term makes a leader of its own, as the lease would.
func (b *bed) term(holder string) partitions.Term {
	b.Helper()
	return partitions.Term{Holder: holder, Number: one[int64](b, `UPDATE audit_leader SET term = term + 1, holder = $1, acquired_at = now(), renewed_at = now(),
		expires_at = now() + interval '1 hour' RETURNING term`, holder)}
}

// round is one some time after the last, by both clocks.
func (b *bed) round(o *Optimizer, term partitions.Term, after time.Duration) error {
	b.Helper()
	b.pass(after)
	return o.Round(b.Context(), term)
}

// pass lets time go by.
func (b *bed) pass(d time.Duration) {
	b.Helper()
	b.now = b.now.Add(d)
	b.exec(`UPDATE audit_optimization SET recorded_at = recorded_at - $1::interval, updated_at = updated_at - $1::interval`, d)
}

// records are what is on record, in order.
func (b *bed) records() []string {
	b.Helper()
	rows, err := b.pool.Query(b.Context(), `SELECT concat_ws(' ', rule, target, state, done_by, detail) FROM audit_optimization ORDER BY id`)
	require.NoError(b, err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(b, err)
	return found
}

func (b *bed) counted(rule string) float64 {
	b.Helper()
	s, err := b.metrics.Sample(b.now)
	require.NoError(b, err)
	return s.Sum("optimizations_total", metrics.Label{Name: "rule", Value: rule})
}

// change makes rows of December differ from what its statistics say.
func (b *bed) change(rows int) {
	b.Helper()
	b.do(fmt.Sprintf(`UPDATE %s SET action = action || 'x' WHERE ctid = ANY (ARRAY(SELECT ctid FROM %s LIMIT %d))`, december, december, rows))
}

// TestAnalyzeRule: a partition whose statistics are stale is analyzed once, on record; then the condition is gone; between the marks nothing happens.
func TestAnalyzeRule(t *testing.T) {
	versions(t, func(b *bed) {
		b.bare()
		b.still(december)
		b.fill("2026-12", 10_000)
		b.do(`ANALYZE ` + december)
		analyzes := func() int64 { return one[int64](b, `SELECT pg_stat_get_analyze_count($1::text::regclass)`, december) }
		o, term := b.optimizer(Switches{Analyze: true}), b.term("me")
		require.NoError(b, b.round(o, term, 0))
		b.change(1_500)
		require.NoError(b, b.round(o, term, time.Hour))
		require.NoError(b, b.round(o, term, time.Hour))
		require.Empty(b, b.records(), "between the marks")
		b.change(1_500)
		require.NoError(b, b.round(o, term, time.Hour))
		require.Empty(b, b.records(), "autovacuum may come first")
		require.EqualValues(b, 1, analyzes())

		require.NoError(b, b.round(o, term, 10*time.Minute))
		require.Equal(b, []string{"analyze audit_log_2026_12 done me"}, b.records())
		require.EqualValues(b, 2, analyzes())
		require.EqualValues(b, 1, b.counted("analyze"))
		require.Equal(b, "10000 3000 10000 0", one[string](b, `SELECT concat_ws(' ', figures#>'{before,live_rows}', figures#>'{before,modified_rows}',
			figures#>'{after,live_rows}', figures#>'{after,modified_rows}') FROM audit_optimization`))
		require.Contains(b, one[string](b, `SELECT reason FROM audit_optimization`), "3000 of 10000 rows were changed")

		for range 5 {
			require.NoError(b, b.round(o, term, time.Hour))
		}
		require.Len(b, b.records(), 1, "the condition is gone")
		b.change(1_500)
		require.NoError(b, b.round(o, term, time.Hour))
		require.NoError(b, b.round(o, term, time.Hour))
		require.Len(b, b.records(), 1, "between the marks")

		b.change(3_000)
		off := b.optimizer(Switches{Cache: true, Vacuum: true})
		for range 3 {
			require.NoError(b, b.round(off, term, time.Hour))
		}
		require.Len(b, b.records(), 1, "the switch is off")

		// A leader that was deposed does nothing.
		require.NoError(b, b.round(o, term, time.Hour))
		next := b.term("you")
		require.ErrorIs(b, b.round(o, term, time.Hour), partitions.ErrDeposed)
		require.Len(b, b.records(), 1)
		require.EqualValues(b, 2, analyzes())
		successor := b.optimizer(all)
		require.NoError(b, b.round(successor, next, time.Hour))
		require.NoError(b, b.round(successor, next, 10*time.Minute))
		require.EqualValues(b, 3, analyzes())
		require.Equal(b, "analyze audit_log_2026_12 done me", b.records()[1])
	})
}

// TestVacuumRule: dead rows of a partition are made room of once, on record; then the condition is gone; between the marks nothing happens.
func TestVacuumRule(t *testing.T) {
	versions(t, func(b *bed) {
		b.bare()
		b.still(december)
		b.fill("2026-12", 60_000)
		vacuums := func() int64 { return one[int64](b, `SELECT pg_stat_get_vacuum_count($1::text::regclass)`, december) }
		remove := func(rows int) {
			b.do(fmt.Sprintf(`DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT ctid FROM %s LIMIT %d))`, december, december, rows))
		}
		o, term := b.optimizer(Switches{Vacuum: true}), b.term("me")
		remove(12_000)
		require.NoError(b, b.round(o, term, 0))
		require.NoError(b, b.round(o, term, time.Hour))
		require.Empty(b, b.records(), "between the marks")
		remove(12_000)
		require.NoError(b, b.round(o, term, time.Hour))
		require.Zero(b, vacuums(), "autovacuum may come first")
		require.NoError(b, b.round(o, term, 10*time.Minute))
		require.Equal(b, []string{"vacuum audit_log_2026_12 done me"}, b.records())
		require.EqualValues(b, 1, vacuums())
		require.EqualValues(b, 1, b.counted("vacuum"))
		require.Equal(b, "24000 0 36000", one[string](b, `SELECT concat_ws(' ', figures#>'{before,dead_rows}', figures#>'{after,dead_rows}', figures#>'{after,live_rows}') FROM audit_optimization`))
		for range 5 {
			require.NoError(b, b.round(o, term, time.Hour))
		}
		require.Len(b, b.records(), 1, "the condition is gone")

		// What an old transaction may still need stays dead, and isn't tried again and again.
		reader, err := b.pool.BeginTx(b.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
		require.NoError(b, err)
		_, err = reader.Exec(b.Context(), `SELECT FROM audit_leader`)
		require.NoError(b, err)
		remove(18_000)
		require.NoError(b, b.round(o, term, 24*time.Hour))
		for range 11 { // two hours less five minutes
			require.NoError(b, b.round(o, term, 10*time.Minute))
		}
		require.Len(b, b.records(), 3)
		require.Equal(b, "18000", one[string](b, `SELECT figures#>>'{after,dead_rows}' FROM audit_optimization ORDER BY id DESC LIMIT 1`))
		require.EqualValues(b, 3, vacuums())
		require.NoError(b, reader.Rollback(b.Context()))

		off := b.optimizer(Switches{Cache: true, Analyze: false})
		for range 3 {
			require.NoError(b, b.round(off, term, 24*time.Hour))
		}
		require.Len(b, b.records(), 3, "the switch is off")

		// Deposed before, or in the middle of it.
		fresh := b.optimizer(Switches{Vacuum: true})
		require.NoError(b, b.round(fresh, term, time.Hour))
		b.term("you")
		require.ErrorIs(b, b.round(fresh, term, time.Hour), partitions.ErrDeposed)
		require.Len(b, b.records(), 3)
		require.EqualValues(b, 3, vacuums())
	})
}

// TestOptimizerLeavesWhatItCanNotDo: what is locked is left and on record, keeps nothing else from being done, and is tried again after a pause.
func TestOptimizerLeavesWhatItCanNotDo(t *testing.T) {
	versions(t, func(b *bed) {
		b.bare()
		for _, month := range []string{"12", "11"} {
			b.still("audit_log_2026_" + month)
			b.fill("2026-"+month, 10_000)
		}
		b.do(`INSERT INTO audit_log_2026_12 SELECT * FROM audit_log_2026_11 WHERE false`)
		lock, err := b.pool.Begin(b.Context())
		require.NoError(b, err)
		_, err = lock.Exec(b.Context(), `LOCK TABLE audit_log_2026_12 IN SHARE UPDATE EXCLUSIVE MODE`)
		require.NoError(b, err)
		o, term := b.optimizer(all), b.term("me")
		require.NoError(b, b.round(o, term, 0))
		require.NoError(b, b.round(o, term, 10*time.Minute))
		require.ElementsMatch(b, []string{"analyze audit_log_2026_11 done me", "analyze audit_log_2026_12 failed me somebody else has it locked"}, b.records())
		require.EqualValues(b, 1, b.counted("analyze"), "what was done")
		require.NoError(b, b.round(o, term, 10*time.Minute))
		require.Len(b, b.records(), 2)
		require.NoError(b, lock.Rollback(b.Context()))
		require.NoError(b, b.round(o, term, time.Hour))
		require.Equal(b, "analyze audit_log_2026_12 done me", b.records()[2])

		// Another leader, whose memory is its own, goes by the record; what never ended is closed, and what is old goes.
		b.change(5_000)
		b.exec(`INSERT INTO audit_optimization (rule, target, reason, done_by, recorded_at) VALUES
			('vacuum', 'lost', 'r', 'gone', now() - interval '16 minutes'), ('vacuum', 'ancient', 'r', 'gone', now() - interval '91 days'), ('vacuum', 'old', 'r', 'gone', now() - interval '89 days'),
			('analyze', 'audit_log_2026_12', 'r', 'she', now())`)
		other := b.optimizer(all)
		require.NoError(b, other.Round(b.Context(), term))
		b.now = b.now.Add(10 * time.Minute)
		require.NoError(b, other.Round(b.Context(), term))
		require.EqualValues(b, 1, one[int64](b, `SELECT pg_stat_get_analyze_count('audit_log_2026_12'::regclass)`), "she has just begun it")
		const lost = " failed gone it was begun and never heard of again: the worker ended, or led no more"
		require.Equal(b, []string{"vacuum lost" + lost, "vacuum old" + lost, "analyze audit_log_2026_12 begun she"}, b.records()[3:])
	})
}

// TestOptimizerOfAnotherRole: a table that isn't ours is skipped by the server, and so not said to be done.
func TestOptimizerOfAnotherRole(t *testing.T) {
	versions(t, func(b *bed) {
		b.bare()
		b.still(december)
		b.fill("2026-12", 30_000)
		b.do(`DELETE FROM ` + december + ` WHERE principal_id LIKE 'p2%'`)
		b.exec(`DROP ROLE IF EXISTS no_owner`)
		b.exec(`CREATE ROLE no_owner LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON audit_optimization, audit_leader TO no_owner`)
		b.Cleanup(func() {
			_, err := b.pool.Exec(context.WithoutCancel(b.Context()), `DROP OWNED BY no_owner; DROP ROLE no_owner`)
			require.NoError(b, err)
		})
		other := *b
		other.url = replaceUser(b.url, "no_owner")
		o, term := b.optimizer(all), b.term("me")
		o.DB = other.open()
		require.NoError(b, b.round(o, term, 0))
		require.NoError(b, b.round(o, term, 10*time.Minute))
		require.Equal(b, []string{
			"vacuum audit_log_2026_12 failed me the server skipped it: the table belongs to another role",
			"analyze audit_log_2026_12 failed me the server skipped it: the table belongs to another role",
		}, b.records())
		require.Zero(b, b.counted("vacuum")+b.counted("analyze"))
		o.DB.Close()
	})
}

// TestOptimizerThroughAPooler: what can't be throttled there is left, with what to do about it.
func TestOptimizerThroughAPooler(t *testing.T) {
	versions(t, func(b *bed) {
		b.bare()
		b.still(december)
		b.fill("2026-12", 30_000)
		b.do(`DELETE FROM ` + december + ` WHERE principal_id LIKE 'p2%'`)
		other := *b
		other.url = testkit.OwnPgBouncer(b, b.url)
		o, term := b.optimizer(all), b.term("me")
		o.DB = other.open("default_query_exec_mode", "exec")
		require.NoError(b, b.round(o, term, 0))
		require.NoError(b, b.round(o, term, 10*time.Minute))
		require.Len(b, b.records(), 2)
		require.Contains(b, b.records()[0], "vacuum audit_log_2026_12 failed me the connection goes through a pooler")
		require.Equal(b, "analyze audit_log_2026_12 done me", b.records()[1])
		o.DB.Close()
	})
}

// TestCacheRule: a cache in Redis that doesn't pay is cleared once, on record, and then left alone; one that pays is never.
func TestCacheRule(t *testing.T) {
	versions(t, func(b *bed) {
		server := testkit.OwnRedis(b)
		client := redis.NewClient(&redis.Options{Addr: server.Address(), MaxRetries: -1})
		defer client.Close() //nolint:errcheck // a test's
		put := func() { require.NoError(b, client.Set(b.Context(), "page", "answer", 0).Err()) }
		kept := func() int64 { return client.Exists(b.Context(), "page").Val() }
		o := b.optimizer(Switches{Cache: true})
		o.Clear = func(ctx context.Context) error { return client.FlushDB(ctx).Err() }
		c := b.collector(func(o *Options) { o.Cached = true })
		// window is a report's after so many looks at the cache.
		window := func(hits, misses float64) error {
			b.metrics.QueryCacheRequests.WithLabelValues("hit").Add(hits)
			b.metrics.QueryCacheRequests.WithLabelValues("miss").Add(misses)
			b.metrics.QueryCacheRequests.WithLabelValues("error").Add(300)
			r := b.next(c)
			b.pass(4 * time.Minute)
			return o.Cache(b.Context(), r.Cache)
		}
		put()
		require.NoError(b, window(10, 290))
		require.NoError(b, window(50, 250))
		require.NoError(b, window(10, 290))
		require.NoError(b, window(10, 90))
		require.EqualValues(b, 1, kept())
		require.Empty(b, b.records(), "not twice in a row, or too few gets")
		require.NoError(b, window(10, 290))
		require.Zero(b, kept())
		require.Equal(b, []string{"cache cache done me"}, b.records())
		require.EqualValues(b, 1, b.counted("cache"))
		require.Equal(b, "300 10", one[string](b, `SELECT concat_ws(' ', figures#>>'{before,gets}', figures#>>'{before,hits}') FROM audit_optimization`))
		require.Equal(b, "cache", b.next(c).Optimizations[0].Rule)

		put()
		for range 5 {
			require.NoError(b, window(10, 290))
		}
		require.EqualValues(b, 1, kept(), "it is left alone")
		require.NoError(b, window(290, 10))
		b.pass(10 * time.Hour)
		require.NoError(b, window(10, 290))
		for range 5 {
			require.NoError(b, window(30, 270))
		}
		require.Len(b, b.records(), 1, "between the marks")

		// Another worker that sees the same goes by the record.
		other := b.optimizer(Switches{Cache: true})
		other.Clear = func(context.Context) error { return errors.New("it must not be called") }
		b.exec(`UPDATE audit_optimization SET recorded_at = now() - interval '10 minutes'`)
		bad := &Cache{Gets: 300, Hits: 3, Ratio: ratio[float64](3, 300)}
		require.NoError(b, other.Cache(b.Context(), bad))
		require.NoError(b, other.Cache(b.Context(), bad))
		require.Len(b, b.records(), 1)

		// The switch.
		b.pass(24 * time.Hour)
		off := b.optimizer(Switches{Analyze: true, Vacuum: true})
		off.Clear = other.Clear
		for range 3 {
			require.NoError(b, off.Cache(b.Context(), bad))
		}
		require.Len(b, b.records(), 1)

		// Redis is gone: that it failed is on record.
		require.NoError(b, server.Kill())
		fresh := b.optimizer(Switches{Cache: true})
		fresh.Clear = o.Clear
		require.NoError(b, fresh.Cache(b.Context(), bad))
		require.ErrorContains(b, fresh.Cache(b.Context(), bad), "clear the cache")
		require.Contains(b, b.records()[1], "cache cache failed me")
		require.EqualValues(b, 1, b.counted("cache"))
		require.NoError(b, fresh.Cache(b.Context(), nil), "there is no cache")
	})
}
