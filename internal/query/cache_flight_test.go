package query_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/query"
	"auditsink/internal/testkit"
)

// gate is a source whose answers wait until it opens, or until nobody waits for them.
type gate struct {
	*source
	began, open chan struct{}
	ended       chan error // the contexts that ended before
}

func newGate(answer string) *gate {
	return &gate{newSource(answer), make(chan struct{}, 100), make(chan struct{}), make(chan error, 100)}
}

func (g *gate) load(ctx context.Context) ([]byte, error) {
	data, err := g.source.load(ctx) // what it says at the begin, as a snapshot of a database
	g.began <- struct{}{}
	select {
	case <-g.open:
		return data, err
	case <-ctx.Done():
		g.ended <- context.Cause(ctx)
		return nil, context.Cause(ctx)
	}
}

// outcome is what a read returned.
type outcome struct {
	answer string
	err    error
}

// ask begins a read, and returns when it waits.
func (c cached) ask(ctx context.Context, t *testing.T, load func(context.Context) ([]byte, error)) <-chan outcome {
	t.Helper()
	waiting := c.Waiting()
	got := make(chan outcome, 1)
	go func() {
		data, err := c.Do(ctx, key("question"), time.Hour, load)
		got <- outcome{string(data), err}
	}()
	require.Eventually(t, func() bool { return c.Waiting() > waiting }, time.Minute, time.Millisecond)
	return got
}

// TestFlight: who asks the same at the same time shares one read, whatever becomes of who began it.
func TestFlight(t *testing.T) {
	server := testkit.OwnRedis(t)
	c, g := newCache(t, connect(t, server.URL(), redisTimeout)), newGate("answer")
	leader, leave := context.WithCancelCause(t.Context())
	first := c.ask(leader, t, g.load)
	var others []<-chan outcome
	for range 5 {
		others = append(others, c.ask(t.Context(), t, g.load))
	}
	hasty, expire := context.WithCancelCause(t.Context())
	late := c.ask(hasty, t, g.load)
	gone, expired := errors.New("gone"), errors.New("expired")
	leave(gone)
	require.ErrorIs(t, (<-first).err, gone)
	expire(expired)
	require.ErrorIs(t, (<-late).err, expired)
	require.Empty(t, g.ended, "others wait")
	close(g.open)
	for _, other := range others {
		require.Equal(t, outcome{"answer", nil}, <-other)
	}
	require.EqualValues(t, 1, g.asked.Load())
	require.Equal(t, [4]int{0, 1, 6, 0}, c.results(t))
	require.Equal(t, "answer", c.read(t, g.source), "it is kept")
	require.EqualValues(t, 1, g.asked.Load())
}

// TestFlightAbandoned: a read that nobody waits for ends, and who comes later begins anew.
func TestFlightAbandoned(t *testing.T) {
	server := testkit.OwnRedis(t)
	c, g := newCache(t, connect(t, server.URL(), redisTimeout)), newGate("answer")
	first, leave := context.WithCancel(t.Context())
	second, leaveToo := context.WithCancel(t.Context())
	a, b := c.ask(first, t, g.load), c.ask(second, t, g.load)
	leave()
	require.ErrorIs(t, (<-a).err, context.Canceled)
	leaveToo()
	require.ErrorIs(t, (<-b).err, context.Canceled)
	require.Error(t, <-g.ended)
	close(g.open)
	require.Equal(t, "answer", c.read(t, g.source))
	require.Equal(t, "answer", c.read(t, g.source))
	require.EqualValues(t, 2, g.asked.Load())
}

// TestFlightOver: a read whose caller's time is over before it begins isn't left running, and an answer that is there is given all the same.
func TestFlightOver(t *testing.T) {
	server := testkit.OwnRedis(t)
	c := newCache(t, connect(t, server.URL(), redisTimeout))
	over, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Do(over, key("question"), time.Hour, func(ctx context.Context) ([]byte, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	})
	require.ErrorIs(t, err, context.Canceled)
	require.True(t, c.Stats().Reachable)
}

// TestFlightFails: an error goes to all who wait, and isn't kept; so does a panic, which isn't the process's end where theirs wouldn't be.
func TestFlightFails(t *testing.T) {
	server := testkit.OwnRedis(t)
	c, g := newCache(t, connect(t, server.URL(), redisTimeout)), newGate("answer")
	refused := errors.New("refused")
	load := func(ctx context.Context) ([]byte, error) {
		_, _ = g.load(ctx) // it is what comes after it that counts
		return []byte("half an answer"), refused
	}
	a, b := c.ask(t.Context(), t, load), c.ask(t.Context(), t, load)
	close(g.open)
	require.ErrorIs(t, (<-a).err, refused)
	require.ErrorIs(t, (<-b).err, refused)
	require.Equal(t, "answer", c.read(t, g.source))

	require.NoError(t, c.Invalidate(t.Context()))
	fault := errors.New("a bug")
	for _, ctx := range []context.Context{t.Context(), query.Fresh(t.Context())} {
		require.PanicsWithValue(t, fault, func() {
			_, _ = c.Do(ctx, key("question"), time.Hour, func(context.Context) ([]byte, error) { panic(fault) }) // it panics
		})
	}
	c.Close()
	require.Equal(t, "answer", c.read(t, g.source))
}

// TestFlightNotShared: no answer goes to who asks another question, or afresh, or after an invalidation that came after the read began, here or elsewhere.
func TestFlightNotShared(t *testing.T) {
	server := testkit.OwnRedis(t)
	c, other := newCache(t, connect(t, server.URL(), redisTimeout)), newCache(t, connect(t, server.URL(), redisTimeout))
	g, now := newGate("old"), newSource("new")
	old := []<-chan outcome{c.ask(t.Context(), t, g.load)}
	for _, invalidate := range []func(context.Context) error{c.Invalidate, other.Invalidate, c.Invalidate} {
		data, err := c.Do(t.Context(), key("another's question"), time.Hour, newSource("another").load)
		require.NoError(t, err)
		require.Equal(t, "another", string(data))
		data, err = c.Do(query.Fresh(t.Context()), key("question"), time.Hour, now.load)
		require.NoError(t, err)
		require.Equal(t, "new", string(data))

		require.NoError(t, invalidate(t.Context()))
		data, err = c.Do(t.Context(), key("question"), time.Hour, now.load)
		require.NoError(t, err)
		require.Equal(t, "new", string(data))
		require.NoError(t, invalidate(t.Context()))
		old = append(old, c.ask(t.Context(), t, g.load))
	}
	close(g.open)
	for _, o := range old {
		require.Equal(t, outcome{"old", nil}, <-o)
	}
	c.Close()
	require.NoError(t, server.Kill())
	t.Run("without Redis", func(t *testing.T) { // an invalidation of this process still parts them
		g := newGate("old")
		old := c.ask(t.Context(), t, g.load)
		require.Error(t, c.Invalidate(t.Context()))
		data, err := c.Do(t.Context(), key("question"), time.Hour, now.load)
		require.NoError(t, err)
		require.Equal(t, "new", string(data))
		close(g.open)
		require.Equal(t, outcome{"old", nil}, <-old)
	})
}

// TestFlightsAtOnce: many processes and readers at once, with invalidations between: nobody gets what was over before he asked.
func TestFlightsAtOnce(t *testing.T) {
	server := testkit.OwnRedis(t)
	var group errgroup.Group
	// A version counts as over when an invalidation that began after it was replaced has returned.
	versions := &versions{}
	load := func(context.Context) ([]byte, error) { return []byte(versions.current()), nil }
	var caches []cached
	for range 2 {
		caches = append(caches, newCache(t, connect(t, server.URL(), redisTimeout)))
	}
	for n := range 8 {
		group.Go(func() error {
			for range 200 {
				least := versions.least()
				data, err := caches[n%2].Do(t.Context(), key("question"), time.Hour, load)
				if err != nil {
					return err
				}
				if err := versions.check(string(data), least); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		for range 100 {
			if err := versions.replace(func() error { return caches[0].Invalidate(t.Context()) }); err != nil {
				return err
			}
		}
		return nil
	})
	require.NoError(t, group.Wait())
	results := caches[1].results(t)
	require.Positive(t, results[0])
	require.Zero(t, results[3])
}
