package query_test

import (
	"context"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/internal/testkit"
)

// promptly requires that something ends of itself, long before the test would.
func promptly[T any](t *testing.T, do func() (T, error)) (T, error) {
	t.Helper()
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		value, err := do()
		done <- outcome{value, err}
	}()
	select {
	case o := <-done:
		return o.value, o.err
	case <-time.After(time.Minute):
		t.Fatal("it hangs")
		panic("unreachable")
	}
}

// TestDeadlineOfTheCache: the timeout of a question holds for the cache too, also where the caller has no deadline of their own.
func TestDeadlineOfTheCache(t *testing.T) {
	t.Run("Redis hangs", func(t *testing.T) {
		t.Parallel()
		b := newBed(t, 18, full(stamp(canonical)))
		server := testkit.OwnRedis(t)
		c := newCache(t, connect(t, server.URL(), time.Hour), func(o *query.CacheOptions) { o.Timeout = time.Hour })
		r := b.reader(func(o *query.Options) { o.Cache, o.Timeout = c.Cache, 20*time.Second })
		require.NoError(t, server.Pause())
		page, err := promptly(t, func() (query.Page, error) { return r.Events(t.Context(), query.Everything(), always, 1, "") })
		require.NoError(t, err)
		require.Len(t, page.Events, 1)
		require.NoError(t, server.Continue())
	})
	t.Run("the database hangs before it has said who it is", func(t *testing.T) {
		t.Parallel()
		b := newBed(t, 18, full(stamp(canonical)))
		config := b.pool.Config().ConnConfig
		proxy := testkit.OwnProxy(t, net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port))))
		url, err := proxy.URL(b.url())
		require.NoError(t, err)
		pool, err := postgres.Open(t.Context(), postgres.Options{URL: url, MaxConns: 1})
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		t.Cleanup(proxy.Heal)
		c := newCache(t, connect(t, testkit.OwnRedis(t).URL(), redisTimeout), func(o *query.CacheOptions) { o.Namespace = pool.Identity })
		r := (&bed{t, pool}).reader(func(o *query.Options) { o.Cache, o.Timeout = c.Cache, 2*time.Second })
		hang := func() {
			proxy.Heal()
			require.NoError(t, pool.Wait(t.Context(), 0, time.Millisecond, func(error) {}))
			proxy.CutOff()
		}
		hang()
		_, err = promptly(t, func() (query.Page, error) { return r.Events(t.Context(), query.Everything(), always, 1, "") })
		require.ErrorIs(t, err, query.ErrTimeout)
		hang()
		_, err = promptly(t, func() (struct{}, error) { return struct{}{}, c.Invalidate(t.Context()) })
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// TestDeadlineOfAPageAndItsCount: both are one question.
func TestDeadlineOfAPageAndItsCount(t *testing.T) {
	t.Parallel()
	b := newBed(t, 18, full(stamp(canonical)))
	const timeout = 2 * time.Second
	r := b.reader(func(o *query.Options) { o.Timeout = timeout })
	now := time.Now()
	q := query.Question{Filter: query.Filter{From: now.Add(-24 * time.Hour), To: now.AddDate(0, 0, 28)}, Limit: 1, Count: true}
	q.Filter.Ascending = true
	_, err := r.Ask(t.Context(), query.Everything(), q) // it knows the layout now
	require.NoError(t, err)

	release := b.hold()
	done := make(chan error, 1)
	go func() {
		_, err := r.Ask(t.Context(), query.Everything(), q)
		done <- err
	}()
	waiting := func(n int64) func() bool {
		return func() bool {
			return b.number(`SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == n
		}
	}
	b.eventually("the page waits", waiting(1))
	again, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	locked := make(chan error, 1)
	go func() {
		_, err := again.Exec(t.Context(), `LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE`) // after the page, before the count
		locked <- err
	}()
	b.eventually("the next lock waits behind it", waiting(2))
	time.Sleep(timeout * 3 / 4)
	release()
	require.NoError(t, <-locked)
	time.Sleep(timeout * 3 / 4) // a count with a timeout of its own would wait for longer
	require.NoError(t, again.Rollback(t.Context()))
	require.ErrorIs(t, <-done, query.ErrTimeout)
}
