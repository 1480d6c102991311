package postgres_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"auditsink/internal/postgres"
	"auditsink/internal/testkit"
)

// TestPoolState: the figures of a pool are what is being done with it.
func TestPoolState(t *testing.T) {
	url := testkit.Postgres(t, 18)
	var waiting, failed atomic.Int64
	pool := open(t, postgres.Options{
		URL: url, MaxConns: 2, AcquireTimeout: patience,
		Waiting: func(by int) { waiting.Add(int64(by)) }, Failed: func() { failed.Add(1) },
	})
	require.Equal(t, int32(2), pool.State().Max)
	var held []*pgxpool.Conn
	for range 2 {
		conn, err := pool.Acquire(t.Context())
		require.NoError(t, err)
		held = append(held, conn)
	}
	s := pool.State()
	require.Equal(t, []int32{2, 2, 0}, []int32{s.Total, s.Active, s.Idle})
	require.EqualValues(t, 2, s.Acquires)
	require.Positive(t, s.MeanAcquire)
	require.Zero(t, s.Waiting)

	// One waits, and gives up: that is a failure where time ran out, and none where its caller left.
	giveUp := func(ctx context.Context, leave func()) {
		done := make(chan error)
		go func() {
			_, err := pool.Acquire(ctx)
			done <- err
		}()
		observe(t, url).eventually("it waits", func() bool { return pool.State().Waiting == 1 && waiting.Load() == 1 })
		leave()
		require.Error(t, <-done)
		require.Zero(t, pool.State().Waiting)
		require.Zero(t, waiting.Load())
	}
	ctx, cancel := context.WithCancel(t.Context())
	giveUp(ctx, cancel)
	require.Zero(t, failed.Load())
	require.Zero(t, pool.State().Failures)
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	giveUp(ctx, func() {})
	require.EqualValues(t, 1, failed.Load())
	require.EqualValues(t, 1, pool.State().Failures)

	// The check has a deadline, which the wait for a connection is part of.
	require.ErrorIs(t, pool.Check(t.Context(), 100*time.Millisecond), context.DeadlineExceeded)
	held[0].Release()
	require.NoError(t, pool.Check(t.Context(), patience))
	require.Equal(t, int32(1), pool.State().Active, "it is given back")
	held[1].Release()

	// The average follows what acquires take now.
	slow := pool.State().MeanAcquire
	require.Greater(t, slow, 20*time.Millisecond, "two that gave up after a while are part of it")
	for range 600 {
		conn, err := pool.Acquire(t.Context())
		require.NoError(t, err)
		conn.Release()
	}
	require.Less(t, pool.State().MeanAcquire, slow/500, "of all there were it would be a hundredth")
}

// TestPoolCheckFails: a server that is gone, or hangs, is found within the deadline, and found again when it is back.
func TestPoolCheckFails(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18})
	pool := open(t, postgres.Options{URL: server.URL("postgres"), MaxConns: 2})
	require.NoError(t, pool.Check(t.Context(), patience))
	require.NoError(t, server.Pause())
	require.ErrorIs(t, pool.Check(t.Context(), 200*time.Millisecond), context.DeadlineExceeded)
	require.NoError(t, server.Continue())
	require.NoError(t, server.Stop())
	require.Error(t, pool.Check(t.Context(), patience))
	require.NoError(t, server.Restart(t.Context()))
	observe(t, server.URL("postgres")).eventually("it answers", func() bool { return pool.Check(t.Context(), patience) == nil })
}
